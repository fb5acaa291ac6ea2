// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"toebox/ci/conformance"
	"toebox/ci/netns/netnstest"
	"toebox/ci/rig"
	"toebox/images/toolchain/toolchaintest"
)

// adapter makes a testing.T a conformance.TB.
type adapter struct{ *testing.T }

func (a adapter) RunSub(name string, f func(conformance.TB)) bool {
	return a.T.Run(name, func(t *testing.T) { f(adapter{t}) })
}

var (
	seed = flag.Uint64("seed", 1, "seed of schedules and payload")
	all  = flag.Bool("all", false, "run the whole kit on the upper rungs and with the kernel, too, not only the subset")
)

// kit runs the functions that choose, if not nil, takes, each on a rig of its own,
// beside those of other kits: much of their time is waiting. It returns the
// counters that moved, if all of them ran.
func kit(t *testing.T, rung string, choose func(*conformance.Test) bool, scale float64, start func(rig.Config) (*rig.Rig, error)) map[string]bool {
	t.Parallel()
	moved := make(map[string]bool)
	var ran, want int
	for _, test := range conformance.Tests() {
		if !test.On(rung) || choose != nil && !choose(test) {
			continue
		}
		want++
		t.Run(test.Name, func(t *testing.T) {
			ran++
			r, err := start(rig.Config{Seed: *seed, Scale: scale})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for name, n := range r.Device().Function().Counters() {
					moved[name] = moved[name] || n > 0
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
			conformance.Run(t.Context(), adapter{t}, test, r.Env())
		})
	}
	if ran != want {
		return nil
	}
	return moved
}

// TestInproc runs the kit by function calls, under the race detector when
// there is one. All of it together moves every counter that SPEC.md names.
func TestInproc(t *testing.T) {
	moved := kit(t, conformance.RungInproc, nil, 2, rig.Inproc)
	if moved == nil {
		return // a part of the kit was asked for
	}
	for _, name := range counters(t) {
		if !moved[name] {
			t.Errorf("no function moves the counter %s", name)
		}
	}
}

// counters are the names in SPEC.md section 13, but for the gauges, which stand
// at 0 again in the end.
func counters(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "vdev", "abi", "SPEC.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## 13. Counters\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var names []string
	next := 0
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \| ([a-z_]+) \| (.*) ?\|$`).FindAllStringSubmatch(section, -1) {
		if m[1] != strconv.Itoa(next) {
			t.Fatalf("counter %s stands in place %d of SPEC.md", m[1], next)
		}
		next++
		if !strings.Contains(m[3], "gauge") {
			names = append(names, m[2])
		}
	}
	if len(names) == 0 {
		t.Fatal("SPEC.md names no counters")
	}
	return names
}

// subset is what runs on the upper rungs before each commit; the whole kit
// runs there in the conformance run.
func subset() func(*conformance.Test) bool {
	if *all {
		return nil
	}
	names := regexp.MustCompile(`RIG02|IF01_(Create|Refused|SeveralQueues)|IF02|IF03|IF08_Tuples|IF11|IF12_Full|` +
		`CE01_Connect|CE02_Listen|CE11_Graceful|MM01_Buffered|IF15_Echo`)
	return func(t *conformance.Test) bool { return names.MatchString(t.Name) }
}

func TestSocket(t *testing.T) { kit(t, conformance.RungSocket, subset(), 2, rig.Socket) }

func TestQTest(t *testing.T) {
	qemu := toolchaintest.QEMU(t)
	kit(t, conformance.RungQTest, subset(), 3, func(c rig.Config) (*rig.Rig, error) {
		c.QEMU = qemu.Command
		return rig.QTest(t.Context(), c)
	})
}

// TestKernel runs what needs a peer with the Linux kernel's TCP as the peer, but
// what takes tens of megabytes.
func TestKernel(t *testing.T) {
	if !netnstest.Here(t) {
		return
	}
	choose := func(t *conformance.Test) bool {
		return t.With(conformance.PeerKernel, conformance.RungInproc) && (*all || t.Needs&conformance.NeedBulk == 0)
	}
	kit(t, conformance.RungInproc, choose, 2, func(c rig.Config) (*rig.Rig, error) {
		c.Peer = conformance.PeerKernel
		return rig.Inproc(c)
	})
}

// TestList: each exported function is in the list, under its own name, and says
// which requirements it proves.
func TestList(t *testing.T) {
	listed := map[string]bool{}
	kernel := 0
	name := regexp.MustCompile(`^Test(IF|CE|MM|RX|RIG)\d\d_[A-Z][A-Za-z0-9]*$`)
	id := regexp.MustCompile(`^(IF|CE|MM|RX|RIG)\d\d$`)
	for _, test := range conformance.Tests() {
		if listed[test.Name] {
			t.Errorf("%s is listed twice", test.Name)
		}
		listed[test.Name] = true
		if test.With(conformance.PeerKernel, conformance.RungInproc) {
			kernel++
		}
		if !name.MatchString(test.Name) || test.Func == nil || len(test.IDs) == 0 {
			t.Errorf("%s: name, function or ids are wrong", test.Name)
		}
		if len(test.IDs) > 0 && !strings.HasPrefix(test.Name, "Test"+test.IDs[0]+"_") {
			t.Errorf("%s does not begin with its first id %s", test.Name, test.IDs[0])
		}
		for _, i := range test.IDs {
			if !id.MatchString(i) {
				t.Errorf("%s: id %q", test.Name, i)
			}
		}
	}
	if all := len(listed); 2*kernel < all {
		t.Errorf("%d of %d functions run with the Linux kernel as the peer, not half of them", kernel, all)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && name.MatchString(fn.Name.Name) && !listed[fn.Name.Name] {
				t.Errorf("%s is not in the list", fn.Name.Name)
			}
		}
	}
}
