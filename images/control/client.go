// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Streams connects a command to its caller. Nil members are as /dev/null.
type Streams struct {
	Stdin    io.Reader
	Stdout   io.Writer
	Stderr   io.Writer
	Messages <-chan Message // signals and terminal sizes to pass on
}

// Run runs a command on the other side and returns its result when it has ended and
// all its output is written. The reader of Stdin is left behind if it is blocked:
// nothing can interrupt a read of a terminal.
func Run(ctx context.Context, s *Session, r Request, io3 Streams) (Result, error) {
	r.Kind = KindExec
	st, err := s.Open(ctx, r)
	if err != nil {
		return Result{}, err
	}
	defer st.Close(Result{Status: 1, Error: "caller is gone"})
	go func() {
		w := st.Writer(0)
		if io3.Stdin != nil {
			io.Copy(w, io3.Stdin) //nolint:errcheck // the command may not want it all
		}
		w.Close() //nolint:errcheck // the stream may be over
	}()
	go func() {
		for {
			select {
			case m := <-io3.Messages:
				st.Send(m) //nolint:errcheck // the stream tells its end to all
			case <-st.Done():
				return
			}
		}
	}()
	var copies sync.WaitGroup
	for ch, w := range map[int]io.Writer{1: io3.Stdout, 2: io3.Stderr} {
		if w == nil {
			w = io.Discard
		}
		copies.Go(func() {
			if _, err := io.Copy(w, st.Reader(ch)); err != nil {
				// Nobody wants the output any more: end the command as SIGPIPE would.
				st.Close(Result{Status: 1, Error: "output closed"})
			}
		})
	}
	uncut := context.AfterFunc(ctx, func() { st.Close(Result{Status: 1, Error: "caller is gone"}) })
	defer uncut()
	result, err := st.Result(context.WithoutCancel(ctx))
	copies.Wait()
	if ctx.Err() != nil {
		return result, context.Cause(ctx)
	}
	return result, err
}

// Call makes one call to a handler that answers with a body.
func Call(ctx context.Context, s *Session, kind string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("control: %s: %w", kind, err)
	}
	st, err := s.Open(ctx, Request{Kind: kind, Body: body})
	if err != nil {
		return err
	}
	defer st.Close(Result{Status: 1, Error: "caller is gone"})
	r, err := st.Result(ctx)
	if err != nil {
		return err
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	if out == nil || len(r.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(r.Body, out); err != nil {
		return fmt.Errorf("control: %s: %w", kind, err)
	}
	return nil
}

// Answer makes the result of a handler that was called by [Call].
func Answer(v any, err error) Result {
	if err != nil {
		return Result{Status: 1, Error: err.Error()}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return Result{Status: 1, Error: err.Error()}
	}
	return Result{Body: b}
}

// Mux dispatches streams by the kind of their request.
type Mux map[string]Handler

// Serve is a Handler.
func (m Mux) Serve(ctx context.Context, st *Stream) Result {
	kind := st.Request().Kind
	if h := m[kind]; h != nil {
		return h(ctx, st)
	}
	return Result{Status: StatusNotFound, Error: fmt.Sprintf("%q is not known here", kind)}
}

// statusGone is toebox's exit code for a guest that crashed.
const statusGone = 3

// Relay serves st by opening the same stream on another session: messages and all
// channels pass, each at the pace of its reader.
func Relay(ctx context.Context, st *Stream, to *Session) Result {
	far, err := to.Open(ctx, st.Request())
	if err != nil {
		return Result{Status: statusGone, Error: err.Error()}
	}
	defer far.Close(Result{Status: 1, Error: "caller is gone"})
	uncut := context.AfterFunc(ctx, func() { far.Close(Result{Status: 1, Error: "caller is gone"}) })
	defer uncut()
	go func() {
		for {
			select {
			case m := <-st.Messages():
				far.Send(m) //nolint:errcheck // the stream tells its end to all
			case <-far.Done():
				return
			}
		}
	}()
	var back sync.WaitGroup
	for ch := range channels {
		go func() {
			w := far.Writer(ch)
			io.Copy(w, st.Reader(ch)) //nolint:errcheck // either end tells
			w.Close()                 //nolint:errcheck // as above
		}()
		back.Go(func() {
			w := st.Writer(ch)
			if _, err := io.Copy(w, far.Reader(ch)); err == nil {
				w.Close() //nolint:errcheck // either end tells
			}
		})
	}
	r, err := far.Result(context.WithoutCancel(ctx))
	back.Wait()
	if err != nil {
		return Result{Status: statusGone, Error: "the machine has ended: " + err.Error()}
	}
	return r
}
