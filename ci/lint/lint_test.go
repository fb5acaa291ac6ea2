// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "toebox"

// file is one file of the repository, by its slash path from the root.
type file struct {
	path string
	data []byte
	ast  *ast.File // of Go files
	fset *token.FileSet
}

func (f *file) test() bool  { return strings.HasSuffix(f.path, "_test.go") }
func (f *file) dir() string { return strings.TrimSuffix(filepath.ToSlash(filepath.Dir(f.path)), "/") }

// imports returns the import paths of a Go file.
func (f *file) imports() []string {
	var out []string
	for _, i := range f.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			out = append(out, p)
		}
	}
	return out
}

// repository reads all files below the module's root, but for what is not of
// the project: version control, binary files, other modules' sums.
func repository(t *testing.T) []*file {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("not at the module's root: %v", err)
	}
	var files []*file
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if n := d.Name(); path != root && (n == ".git" || n == "testdata" || n == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || rel == ".git" { // a file in a work tree
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.IndexByte(data[:min(len(data), 4096)], 0) >= 0 {
			return nil
		}
		f := &file{path: filepath.ToSlash(rel), data: data}
		if strings.HasSuffix(f.path, ".go") {
			f.fset = token.NewFileSet()
			if f.ast, err = parser.ParseFile(f.fset, path, data, parser.ParseComments); err != nil {
				return fmt.Errorf("%s: %w", rel, err)
			}
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d files found", len(files))
	}
	return files
}

func goFiles(t *testing.T) []*file {
	t.Helper()
	var out []*file
	for _, f := range repository(t) {
		if f.ast != nil {
			out = append(out, f)
		}
	}
	return out
}

// arrow says what the packages below a folder may import of ours. The first
// arrow whose folder holds a package decides.
type arrow struct {
	from string
	to   []string // folders; nil: nothing of ours beyond from itself
}

func arrows() []arrow {
	return []arrow{
		{"vfio-user/keeper", []string{"vfio-user"}},
		{"vfio-user", []string{"vfio-user"}},
		{"vdev/abi", nil},
		// The port speaks the frames that the engine's interface defines.
		{"vdev/port", []string{"firmware/engine"}},
		{"vdev", []string{"vdev", "vfio-user", "firmware"}},
		{"firmware/engine", []string{"firmware/engine"}},
		{"firmware", []string{"vdev/abi", "firmware"}},
		{"guestdriver", []string{"vdev/abi", "guestdriver"}},
		{"images", []string{""}},
		{"ci", []string{""}},
	}
}

func below(path, folder string) bool {
	return folder == "" || path == folder || strings.HasPrefix(path, folder+"/")
}

// forbidden says why a file of the folder must not import path, or "".
func forbidden(dir, path string, test bool) string {
	if strings.HasPrefix(path, "gvisor.dev/") && dir != "firmware/engine" && dir != "vdev/port" && !below(dir, "firmware/engine") && !below(dir, "vdev/port") {
		return "gVisor is for firmware/engine and vdev/port"
	}
	ours, ok := strings.CutPrefix(path, module+"/")
	for _, a := range arrows() {
		if !below(dir, a.from) {
			continue
		}
		if !ok {
			third := strings.Contains(strings.SplitN(path, "/", 2)[0], ".")
			if third && a.from == "vdev/abi" && !test {
				return "vdev/abi imports the standard library only"
			}
			if third && a.from == "vfio-user" && !test && !strings.HasPrefix(path, "golang.org/x/sys/") {
				return "vfio-user imports the standard library and x/sys only"
			}
			return ""
		}
		if below(ours, a.from) || slices.ContainsFunc(a.to, func(to string) bool { return below(ours, to) }) {
			return ""
		}
		// A test may look at its package from above: the engine over the port.
		if test && below(dir, "vdev/port") && below(ours, "firmware") {
			return ""
		}
		return fmt.Sprintf("%s may import of ours only %q", a.from, a.to)
	}
	return "the folder is in no row of the table of arrows"
}

func TestImportArrows(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, path := range f.imports() {
			if why := forbidden(f.dir(), path, f.test()); why != "" {
				t.Errorf("%s imports %s: %s", f.path, path, why)
			}
		}
	}
}

// TestArrowsBite keeps the rule itself honest.
func TestArrowsBite(t *testing.T) {
	for _, k := range []struct {
		dir, path string
		allowed   bool
	}{
		{"vdev/abi", "encoding/binary", true},
		{"vdev/abi", "golang.org/x/sys/unix", false},
		{"vdev/abi", "toebox/firmware", false},
		{"vfio-user", "golang.org/x/sys/unix", true},
		{"vfio-user", "toebox/vdev/abi", false},
		{"vfio-user/vfiousertest", "toebox/vfio-user", true},
		{"firmware", "toebox/vdev/abi", true},
		{"firmware", "toebox/vdev", false},
		{"firmware", "gvisor.dev/gvisor/pkg/tcpip", false},
		{"firmware/engine", "gvisor.dev/gvisor/pkg/tcpip", true},
		{"firmware/engine", "toebox/vdev/abi", false},
		{"vdev", "toebox/firmware/engine", true},
		{"vdev/port", "toebox/firmware", false},
		{"guestdriver/vfio", "toebox/vdev", false},
		{"guestdriver", "toebox/firmware", false},
		{"images/cmd/toebox", "toebox/ci/runner", true},
		{"ci/conformance", "toebox/vdev", true},
		{"ci/conformance", "gvisor.dev/gvisor/pkg/tcpip", false},
		{"elsewhere", "fmt", false},
	} {
		if got := forbidden(k.dir, k.path, false) == ""; got != k.allowed {
			t.Errorf("%s imports %s: allowed is %v, want %v", k.dir, k.path, got, k.allowed)
		}
	}
}

// TestGuestBinaries: what runs in the guest must not drag the device along.
func TestGuestBinaries(t *testing.T) {
	seen := map[string]string{}
	var walk func(path, from string)
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	walk = func(path, from string) {
		if _, ok := seen[path]; ok {
			return
		}
		seen[path] = from
		rel, ok := strings.CutPrefix(path, module+"/")
		if !ok {
			return
		}
		p, err := build.ImportDir(filepath.Join(root, rel), 0)
		if err != nil {
			t.Errorf("%s, imported by %s: %v", path, from, err)
			return
		}
		for _, i := range p.Imports {
			walk(i, path)
		}
	}
	for _, main := range []string{"guestdriver/cmd/toebox-guest", "ci/cmd/toebox-conformance", "ci/cmd/toebox-bench"} {
		if _, err := os.Stat(filepath.Join(root, main)); err == nil {
			walk(module+"/"+main, "the guest")
		}
	}
	for path, from := range seen {
		for _, bad := range []string{module + "/firmware", module + "/vdev/port", module + "/vfio-user", "gvisor.dev/"} {
			if path == bad || strings.HasPrefix(path, bad) {
				t.Errorf("a guest binary contains %s, imported by %s", path, from)
			}
		}
		if path == module+"/vdev" {
			t.Errorf("a guest binary contains %s, imported by %s", path, from)
		}
	}
}

const spdx = "SPDX-License-Identifier: Apache-2.0"

func TestSPDX(t *testing.T) {
	for _, f := range repository(t) {
		comment := ""
		switch base, ext := filepath.Base(f.path), filepath.Ext(f.path); {
		case ext == ".go", ext == ".s", ext == ".h", ext == ".c":
			comment = "//"
		case ext == ".sh", base == "Makefile", f.path == ".ci/run", base == "go.mod" && f.path != "go.mod":
			comment = "#"
		default:
			continue
		}
		head, _, _ := bytes.Cut(f.data, []byte("\n\n"))
		if strings.HasSuffix(f.path, "go.mod") {
			comment = "//"
		}
		lines := strings.Split(string(head), "\n")
		if len(lines) > 3 {
			lines = lines[:3]
		}
		if !slices.Contains(lines, comment+" "+spdx) && !generated(f) {
			t.Errorf("%s: no line %q at the top", f.path, comment+" "+spdx)
		}
	}
}

func generated(f *file) bool { return f.ast != nil && ast.IsGenerated(f.ast) }

// TestPackageDoc: each package says what it is in doc.go.
func TestPackageDoc(t *testing.T) {
	has := map[string]bool{}
	for _, f := range goFiles(t) {
		if f.test() {
			continue
		}
		dir := f.dir()
		doc := filepath.Base(f.path) == "doc.go" && f.ast.Doc != nil
		if doc {
			text := f.ast.Doc.Text()
			name := filepath.Base(dir)
			if want := "Package " + f.ast.Name.Name; f.ast.Name.Name != "main" && !strings.HasPrefix(text, want) {
				t.Errorf("%s does not begin with %q", f.path, want)
			}
			if f.ast.Name.Name == "main" && !strings.HasPrefix(text, "Command "+name) && !strings.HasPrefix(text, "The "+name) {
				t.Errorf("%s does not begin with %q", f.path, "Command "+name)
			}
		}
		has[dir] = has[dir] || doc
	}
	for dir, ok := range has {
		if !ok {
			t.Errorf("package %s has no doc.go with a comment", dir)
		}
	}
}

func TestFileLength(t *testing.T) {
	const most = 600
	for _, f := range goFiles(t) {
		if n := bytes.Count(f.data, []byte("\n")); n > most && !generated(f) {
			t.Errorf("%s has %d lines, more than %d", f.path, n, most)
		}
	}
}

func TestUnsafe(t *testing.T) {
	for _, f := range goFiles(t) {
		if strings.HasSuffix(f.path, "_unsafe.go") || strings.HasSuffix(f.path, "_unsafe_test.go") {
			continue
		}
		for _, path := range f.imports() {
			if path == "unsafe" {
				t.Errorf("%s imports unsafe", f.path)
			}
		}
	}
}

// TestNoSleep: a test that sleeps is slow where it passes and wrong where it
// does not.
func TestNoSleep(t *testing.T) {
	for _, f := range goFiles(t) {
		if !f.test() {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s sleeps", f.fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// TestNoGlobals: state lives in fields. A package variable may hold what never
// changes: an error, a compiled pattern, embedded files, a proof of an
// interface.
func TestNoGlobals(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test() {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: init", f.fset.Position(d.Pos()))
				}
			case *ast.GenDecl:
				if d.Tok != token.VAR {
					continue
				}
				for _, s := range d.Specs {
					v, ok := s.(*ast.ValueSpec)
					if ok && !constant(v, d) {
						t.Errorf("%s: package variable %s", f.fset.Position(v.Pos()), v.Names[0].Name)
					}
				}
			}
		}
	}
}

func constant(v *ast.ValueSpec, d *ast.GenDecl) bool {
	if v.Names[0].Name == "_" {
		return true
	}
	for _, doc := range []*ast.CommentGroup{v.Doc, d.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") }) {
			return true
		}
	}
	for _, x := range v.Values {
		if sel, ok := x.(*ast.SelectorExpr); ok && strings.HasPrefix(sel.Sel.Name, "Err") {
			continue // another name of another package's error
		}
		call, ok := x.(*ast.CallExpr)
		if !ok {
			return false
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		pkg, ok := sel.X.(*ast.Ident)
		if !ok || !slices.Contains([]string{"errors.New", "fmt.Errorf", "regexp.MustCompile"}, pkg.Name+"."+sel.Sel.Name) {
			return false
		}
	}
	return len(v.Values) > 0
}

// TestNoMachine: no file names a place of the machine it was written on, or a
// mirror.
func TestNoMachine(t *testing.T) {
	// Put together here, so that this file does not contain what it forbids.
	patterns := []*regexp.Regexp{
		regexp.MustCompile(`(^|[^A-Za-z0-9_.$-])/` + `work/`),
		regexp.MustCompile(`(^|[^A-Za-z0-9_.$-])/` + `root/`),
		regexp.MustCompile(`/home/` + `[a-z]+/`),
		regexp.MustCompile(`\b(deb|ftp|security|archive|cdn-fastly|snapshot)\.` + `(debian|ubuntu)\.(org|com)\b`),
	}
	for _, f := range repository(t) {
		for i, line := range strings.Split(string(f.data), "\n") {
			for _, p := range patterns {
				if p.MatchString(line) {
					t.Errorf("%s:%d: %s", f.path, i+1, strings.TrimSpace(line))
				}
			}
		}
	}
}

// TestBuildTags: code that no build sees rots.
func TestBuildTags(t *testing.T) {
	known := []string{"linux", "amd64", "arm64", "unix", "race", "tools", "ignore", "386", "arm", "riscv64"}
	for _, f := range goFiles(t) {
		for _, g := range f.ast.Comments {
			for _, c := range g.List {
				if c.Pos() > f.ast.Package || !constraint.IsGoBuild(c.Text) {
					continue
				}
				x, err := constraint.Parse(c.Text)
				if err != nil {
					t.Errorf("%s: %v", f.path, err)
					continue
				}
				x.Eval(func(tag string) bool {
					if !slices.Contains(known, tag) {
						t.Errorf("%s: build tag %s", f.path, tag)
					}
					return true
				})
			}
		}
	}
}
