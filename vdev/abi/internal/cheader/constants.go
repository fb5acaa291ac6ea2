// SPDX-License-Identifier: Apache-2.0

package cheader

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"toebox/vdev/abi"
)

// block is a const block of the package.
type block struct {
	doc       string
	constants []constantInfo
}

type constantInfo struct {
	name    string // in Go
	kind    string // its Go type's name, or ""
	value   uint64
	hex     bool // written by bits or as an address
	comment string
}

// noImports lets package abi be checked without what it imports: its constants
// need none.
type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }

// blocks reads the exported constants of a package's source.
func blocks(dir string) ([]block, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	// In the order of SPEC.md, what it does not know behind.
	order := []string{"registers.go", "event.go", "descriptor.go", "control.go", "records.go", "attributes.go", "status.go", "counters.go"}
	rank := func(f *ast.File) int {
		i := slices.Index(order, filepath.Base(fset.Position(f.Package).Filename))
		if i < 0 {
			return len(order)
		}
		return i
	}
	slices.SortStableFunc(files, func(a, b *ast.File) int { return rank(a) - rank(b) })
	info := types.Info{Defs: map[*ast.Ident]types.Object{}}
	cfg := types.Config{Error: func(error) {}, Importer: noImports{}}
	_, _ = cfg.Check("abi", fset, files, &info) // errors are those of missing imports
	var all []block
	for _, f := range files {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			b := block{doc: text(g.Doc)}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, id := range v.Names {
					c, ok := info.Defs[id].(*types.Const)
					if !ok || !id.IsExported() {
						continue
					}
					ci, ok, err := describe(c, v, i)
					if err != nil {
						return nil, err
					}
					if ok {
						b.constants = append(b.constants, ci)
					}
				}
			}
			if len(b.constants) > 0 {
				all = append(all, b)
			}
		}
	}
	return all, nil
}

func describe(c *types.Const, v *ast.ValueSpec, i int) (constantInfo, bool, error) {
	ci := constantInfo{name: c.Name(), comment: text(v.Comment)}
	if n, ok := c.Type().(*types.Named); ok {
		ci.kind = n.Obj().Name()
	}
	// How Go describes attributes is no part of the interface.
	if ci.kind == "Kind" || c.Val().Kind() != constant.Int {
		return ci, false, nil
	}
	var exact bool
	if ci.value, exact = constant.Uint64Val(c.Val()); !exact {
		return ci, false, fmt.Errorf("constant %s is no u64", ci.name)
	}
	if i < len(v.Values) {
		ast.Inspect(v.Values[i], func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				ci.hex = ci.hex || strings.HasPrefix(n.Value, "0x")
			case *ast.BinaryExpr:
				ci.hex = ci.hex || n.Op == token.SHL
			}
			return true
		})
	}
	return ci, true, nil
}

// text is a comment on one line, without links.
func text(g *ast.CommentGroup) string {
	s := strings.Join(strings.Fields(g.Text()), " ")
	return regexp.MustCompile(`\[(\w+)\]`).ReplaceAllString(s, "$1")
}

// names gives constants the names of SPEC.md.
type names struct {
	registers, queue map[uint64]string
	attributes       map[uint64]string
}

// readNames reads the names of registers from SPEC.md.
func readNames(dir string) (*names, error) {
	spec, err := os.ReadFile(filepath.Join(dir, "SPEC.md"))
	if err != nil {
		return nil, err
	}
	n := &names{attributes: map[uint64]string{}}
	if n.registers, err = rows(string(spec), "## 3. "); err != nil {
		return nil, err
	}
	if n.queue, err = rows(string(spec), "### 3.2 "); err != nil {
		return nil, err
	}
	for _, a := range abi.Attributes() {
		n.attributes[uint64(a.ID)] = a.Name
	}
	return n, nil
}

// rows reads a table whose rows begin with a number and a name.
func rows(spec, heading string) (map[uint64]string, error) {
	_, s, ok := strings.Cut(spec, "\n"+heading)
	if !ok {
		return nil, fmt.Errorf("SPEC.md has no %q", heading)
	}
	s, _, _ = strings.Cut(s, "\n#")
	m := map[uint64]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| (0x[0-9a-f]+) \| ([A-Z0-9_]+) \|`).FindAllStringSubmatch(s, -1) {
		v, err := strconv.ParseUint(row[1], 0, 64)
		if err != nil {
			return nil, err
		}
		m[v] = row[2]
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("SPEC.md: no rows under %q", heading)
	}
	return m, nil
}

// c returns the macro of a constant.
func (n *names) c(c constantInfo) string {
	spec := ""
	prefix := ""
	switch {
	case c.kind == "Attribute":
		prefix, spec = "ATTR_", n.attributes[c.value]
	case c.kind == "Status":
		prefix, spec = "STATUS_", abi.Status(c.value).String()
	case c.kind == "Counter" && strings.HasPrefix(c.name, "Counter"):
		prefix, spec = "COUNTER_", strings.ToUpper(abi.Counter(c.value).String())
	case strings.HasPrefix(c.name, "QReg"):
		prefix, spec = "REG_", n.queue[c.value]
	case strings.HasPrefix(c.name, "Reg") && !strings.HasSuffix(c.name, "Stride") && n.registers[c.value] != "":
		prefix, spec = "REG_", n.registers[c.value]
	case strings.HasPrefix(c.name, "Status"): // bits of the register
		return "TOEBOX_STATUS_BIT_" + snake(strings.TrimPrefix(c.name, "Status"))
	}
	if spec != "" {
		return "TOEBOX_" + prefix + spec
	}
	return "TOEBOX_" + snake(c.name)
}

// snake turns a Go name into one of C.
func snake(s string) string {
	s = strings.NewReplacer("INTx", "Intx", "IPv6", "Ipv6", "BARMSIX", "BarMsix", "MSIXPBA", "MsixPba").Replace(s)
	r := []rune(s)
	var b strings.Builder
	for i, c := range r {
		if i > 0 && unicode.IsUpper(c) && (!unicode.IsUpper(r[i-1]) || i+1 < len(r) && unicode.IsLower(r[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToUpper(c))
	}
	return b.String()
}

// literal is a constant as C wants it: hexadecimal is unsigned.
func literal(c constantInfo) string {
	s := strconv.FormatUint(c.value, 10)
	if c.hex {
		digits := 2
		if c.kind == "Attribute" || strings.HasPrefix(c.name, "Reg") {
			digits = 4
		}
		s = fmt.Sprintf("0x%0*x", digits, c.value)
	}
	switch {
	case c.value > 1<<32-1:
		s += "ull"
	case c.hex || c.value > 1<<31-1:
		s += "u"
	}
	return s
}
