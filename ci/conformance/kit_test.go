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
	all  = flag.Bool("all", false, "run the whole kit on QEMU, not only the subset")
)

// TestInproc runs the kit by function calls, under the race detector when
// there is one.
func TestInproc(t *testing.T) {
	for _, test := range conformance.Tests() {
		if !test.On(conformance.RungInproc) {
			continue
		}
		t.Run(test.Name, func(t *testing.T) {
			r, err := rig.Inproc(rig.Config{Seed: *seed, Scale: 2})
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

// subset is what runs on QEMU before each commit; the whole kit runs there in
// the conformance run.
const subset = `RIG02|IF01_(Create|Refused|SeveralQueues)|IF02|IF03|IF08_Tuples|IF11|IF12_Full|CE01_Connect|CE02_Listen|CE11_Graceful|MM01_Buffered|IF15_Echo`

func TestQTest(t *testing.T) {
	qemu := toolchaintest.QEMU(t)
	choose := regexp.MustCompile(subset)
	for _, test := range conformance.Tests() {
		if !test.On(conformance.RungQTest) || !*all && !choose.MatchString(test.Name) {
			continue
		}
		t.Run(test.Name, func(t *testing.T) {
			r, err := rig.QTest(t.Context(), rig.Config{Seed: *seed, Scale: 3, QEMU: qemu.Command})
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
