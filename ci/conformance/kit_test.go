// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"toebox/ci/conformance"
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
	all  = flag.Bool("all", false, "run the whole kit on the upper rungs, too, not only the subset")
)

// kit runs the functions that choose, if not nil, takes, each on a rig of its own.
func kit(t *testing.T, rung string, choose *regexp.Regexp, scale float64, start func(rig.Config) (*rig.Rig, error)) {
	for _, test := range conformance.Tests() {
		if !test.On(rung) || choose != nil && !choose.MatchString(test.Name) {
			continue
		}
		t.Run(test.Name, func(t *testing.T) {
			r, err := start(rig.Config{Seed: *seed, Scale: scale})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
			conformance.Run(t.Context(), adapter{t}, test, r.Env())
		})
	}
}

// TestInproc runs the kit by function calls, under the race detector when
// there is one.
func TestInproc(t *testing.T) { kit(t, conformance.RungInproc, nil, 2, rig.Inproc) }

// subset is what runs on the upper rungs before each commit; the whole kit
// runs there in the conformance run.
func subset() *regexp.Regexp {
	if *all {
		return nil
	}
	return regexp.MustCompile(`RIG02|IF01_(Create|Refused|SeveralQueues)|IF02|IF03|IF08_Tuples|IF11|IF12_Full|` +
		`CE01_Connect|CE02_Listen|CE11_Graceful|MM01_Buffered|IF15_Echo`)
}

func TestSocket(t *testing.T) { kit(t, conformance.RungSocket, subset(), 2, rig.Socket) }

func TestQTest(t *testing.T) {
	qemu := toolchaintest.QEMU(t)
	kit(t, conformance.RungQTest, subset(), 3, func(c rig.Config) (*rig.Rig, error) {
		c.QEMU = qemu.Command
		return rig.QTest(t.Context(), c)
	})
}

// TestList: each exported function is in the list, under its own name, and says
// which requirements it proves.
func TestList(t *testing.T) {
	listed := map[string]bool{}
	name := regexp.MustCompile(`^Test(IF|CE|MM|RX|RIG)\d\d_[A-Z][A-Za-z0-9]*$`)
	id := regexp.MustCompile(`^(IF|CE|MM|RX|RIG)\d\d$`)
	for _, test := range conformance.Tests() {
		if listed[test.Name] {
			t.Errorf("%s is listed twice", test.Name)
		}
		listed[test.Name] = true
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
