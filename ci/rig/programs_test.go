// SPDX-License-Identifier: Apache-2.0

package rig_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/rpc"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// side is where a program's server or client runs, and how its clients reach
// the listener.
type side struct {
	listen func() (net.Listener, error)
	// dial connects to the other side's listener.
	dial func(ctx context.Context, l net.Listener) (net.Conn, error)
}

// sides returns the server on the adapter with clients on the host, and the
// reverse.
func sides(t *testing.T) map[string]side {
	s := offload(t)
	var d net.Dialer
	var mu sync.Mutex
	ways := make(map[net.Listener]string)
	return map[string]side{
		"server": {
			listen: func() (net.Listener, error) {
				l, err := s.listen("tcp", s.own+":0")
				if err == nil {
					at := s.outside(t, l)
					mu.Lock()
					ways[l] = at
					mu.Unlock()
				}
				return l, err
			},
			dial: func(ctx context.Context, l net.Listener) (net.Conn, error) {
				mu.Lock()
				at := ways[l]
				mu.Unlock()
				return d.DialContext(ctx, "tcp", at)
			},
		},
		"client": {
			listen: func() (net.Listener, error) { return net.Listen("tcp4", "127.0.0.1:0") },
			dial: func(ctx context.Context, l net.Listener) (net.Conn, error) {
				_, port, _ := net.SplitHostPort(l.Addr().String())
				return s.dial(ctx, "tcp", net.JoinHostPort(s.host, port))
			},
		},
	}
}

// each runs a program with its server on the adapter, and with its client.
func each(t *testing.T, f func(t *testing.T, s side)) {
	for name, s := range sides(t) {
		t.Run(name, func(t *testing.T) { f(t, s) })
	}
}

// TestHTTP and the tests below run programs of the standard library, and an SSH
// server, over the driver: they take it for package net.
func TestHTTP(t *testing.T) {
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			each(t, func(t *testing.T, s side) { serveHTTP(t, s, version) })
		})
	}
}

func serveHTTP(t *testing.T, s side, version int) {
	l, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Version", r.Proto)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("request body: %v", err)
		}
		w.Write(body)
		fmt.Fprintf(w, "%d %x", len(body), sha256.Sum256(body))
	}))
	srv.Listener.Close()
	srv.Listener = l
	srv.EnableHTTP2 = version == 2
	srv.StartTLS()
	defer srv.Close()
	client := srv.Client()
	tr := client.Transport.(*http.Transport)
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx, l) }
	client.Timeout = patience
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			body := bytes.Repeat([]byte{byte(i), 1, 2, 3, 5, 7, 11}, 20_000*i+1)
			resp, err := client.Post("https://example.com/", "application/octet-stream", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			want := fmt.Sprintf("%s%d %x", body, len(body), sha256.Sum256(body))
			if err != nil || string(got) != want {
				t.Errorf("%d bytes: got %d, %v", len(body), len(got), err)
			}
			if v := resp.Header.Get("Version"); resp.ProtoMajor != version || !strings.HasPrefix(v, fmt.Sprintf("HTTP/%d.", version)) {
				t.Errorf("spoke %s and %s", resp.Proto, v)
			}
		})
	}
	wg.Wait()
}

// TestTLS has each side write, end its direction, and read to the end.
func TestTLS(t *testing.T) {
	borrowed := httptest.NewTLSServer(nil) // for its certificate
	defer borrowed.Close()
	server := &tls.Config{Certificates: borrowed.TLS.Certificates}
	client := borrowed.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	client.ServerName = "example.com"
	each(t, func(t *testing.T, s side) {
		l, err := s.listen()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		said := func(c *tls.Conn, what string) (string, error) {
			c.SetDeadline(time.Now().Add(patience))
			if _, err := io.WriteString(c, what); err != nil {
				return "", err
			}
			if err := c.CloseWrite(); err != nil {
				return "", err
			}
			b, err := io.ReadAll(c)
			return string(b), err
		}
		done := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				done <- err
				return
			}
			defer c.Close()
			got, err := said(tls.Server(c, server), "from the server")
			if err == nil && got != "from the client" {
				err = fmt.Errorf("heard %q", got)
			}
			done <- err
		}()
		c, err := s.dial(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := said(tls.Client(c, client), "from the client"); err != nil || got != "from the server" {
			t.Errorf("heard %q, %v", got, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Sums is a service for package rpc.
type Sums struct{}

// Add sums.
func (Sums) Add(in []int, out *int) error {
	if len(in) == 0 {
		return errors.New("nothing to add")
	}
	for _, v := range in {
		*out += v
	}
	return nil
}

func TestRPC(t *testing.T) {
	each(t, func(t *testing.T, s side) {
		l, err := s.listen()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		srv := rpc.NewServer()
		if err := srv.Register(Sums{}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			srv.ServeConn(c)
		})
		c, err := s.dial(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		client := rpc.NewClient(c)
		defer client.Close()
		var calls sync.WaitGroup
		for i := range 20 {
			calls.Go(func() {
				in := make([]int, 1000*i+1)
				for j := range in {
					in[j] = j
				}
				var sum int
				if err := client.Call("Sums.Add", in, &sum); err != nil || sum != 1000*i*(1000*i+1)/2 {
					t.Errorf("sum of %d: %d, %v", len(in), sum, err)
				}
			})
		}
		calls.Wait()
		var sum int
		if err := client.Call("Sums.Add", []int{}, &sum); err != rpc.ServerError("nothing to add") {
			t.Errorf("a call that fails: %v", err)
		}
	})
}

// TestSSH runs a command over SSH: standard streams both ways and the status.
func TestSSH(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	server := &ssh.ServerConfig{PasswordCallback: func(c ssh.ConnMetadata, p []byte) (*ssh.Permissions, error) {
		if c.User() != "user" || string(p) != "secret" {
			return nil, errors.New("wrong password")
		}
		return nil, nil
	}}
	server.AddHostKey(signer)
	each(t, func(t *testing.T, s side) {
		l, err := s.listen()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		done := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				c.SetDeadline(time.Now().Add(patience))
				err = serveSSH(c, server)
			}
			done <- err
		}()
		c, err := s.dial(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		conn, chans, reqs, err := ssh.NewClientConn(c, "adapter", &ssh.ClientConfig{
			User: "user", Auth: []ssh.AuthMethod{ssh.Password("secret")}, HostKeyCallback: ssh.FixedHostKey(signer.PublicKey()),
		})
		if err != nil {
			t.Fatal(err)
		}
		client := ssh.NewClient(conn, chans, reqs)
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		in := bytes.Repeat([]byte("over and over "), 100_000)
		session.Stdin = bytes.NewReader(in)
		out, err := session.Output("cat; exit 7")
		var exit *ssh.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 7 || !bytes.Equal(out, in) {
			t.Errorf("%d of %d bytes came back, %v", len(out), len(in), err)
		}
		client.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// serveSSH serves one session, whose command is to copy its input and to end
// with status 7.
func serveSSH(c net.Conn, cfg *ssh.ServerConfig) error {
	conn, chans, reqs, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	go ssh.DiscardRequests(reqs)
	for n := range chans {
		ch, reqs, err := n.Accept()
		if err != nil {
			return err
		}
		for r := range reqs {
			if r.Type != "exec" {
				return fmt.Errorf("request %q", r.Type)
			}
			r.Reply(true, nil)
			if _, err := io.Copy(ch, ch); err != nil {
				return err
			}
			if _, err := ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{7})); err != nil {
				return err
			}
			ch.Close()
		}
	}
	return nil
}
