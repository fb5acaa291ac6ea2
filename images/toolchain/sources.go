// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bufio"
	"bytes"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"sort"
	"strings"
)

// maxSources bounds one sources file; the real ones have a few hundred bytes.
const maxSources = 1 << 20

// A source is one entry of apt's configuration, in either of its two forms
// (sources.list(5)).
type source struct {
	types      []string
	uris       []string
	suites     []string
	components []string
	signedBy   string
	disabled   bool
}

// Mirrors lists the addresses of Debian archives that the machine's apt
// configuration below root names, the likeliest first. Whether one really is a
// Debian archive is for apt and the archive's signature to say.
func Mirrors(root fs.FS) []string {
	type candidate struct {
		uri   string
		score int
	}
	var found []candidate
	add := func(uri string, score int) {
		for i := range found {
			if found[i].uri == uri {
				found[i].score = max(found[i].score, score)
				return
			}
		}
		found = append(found, candidate{uri, score})
	}
	for _, s := range sources(root) {
		if s.disabled || !slices.Contains(s.types, "deb") || !slices.Contains(s.components, "main") {
			continue
		}
		for _, uri := range s.uris {
			if score := s.score(uri); score > 0 {
				add(uri, score)
			}
			// A mirror of a derivative often carries Debian beside it.
			if base := strings.TrimRight(uri, "/"); path.Base(base) == "ubuntu" {
				add(strings.TrimSuffix(base, "ubuntu")+"debian", 1)
			}
		}
	}
	// python-apt knows the address of Debian's main archive also on derivatives.
	for _, name := range []string{"usr/share/python-apt/templates/Debian.info"} {
		for _, l := range lines(root, name) {
			if uri, ok := strings.CutPrefix(l, "BaseURI:"); ok {
				add(strings.TrimSpace(uri), 2)
				break
			}
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].score > found[j].score })
	var uris []string
	for _, c := range found {
		uris = append(uris, c.uri)
	}
	return uris
}

// score says how likely uri is a full Debian archive: 0 is not at all, the entries
// that Debian's installers write get the most.
func (s source) score(uri string) int {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme == "" || u.Scheme == "cdrom" {
		return 0
	}
	debian := false
	score := 3
	for _, suite := range s.suites {
		suite = strings.Trim(suite, "/")
		name, suffix, _ := strings.Cut(suite, "-")
		switch name {
		case "buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
			"oldoldstable", "oldstable", "stable", "testing", "unstable":
		default:
			continue
		}
		switch suffix {
		case "":
			debian = true
		case "updates", "backports", "proposed":
			debian = true
			score += 2
		}
	}
	if !debian {
		return 0
	}
	if path.Base(strings.TrimRight(u.Path+u.Opaque, "/")) == "debian" {
		score += 4
	}
	if strings.Contains(s.signedBy, "debian-archive") {
		score += 2
	}
	return score
}

func sources(root fs.FS) []source {
	var all []source
	names := []string{"etc/apt/sources.list"}
	for _, pattern := range []string{"etc/apt/sources.list.d/*.list", "etc/apt/sources.list.d/*.sources"} {
		more, err := fs.Glob(root, pattern)
		if err == nil {
			names = append(names, more...)
		}
	}
	for _, name := range names {
		ls := lines(root, name)
		if strings.HasSuffix(name, ".sources") {
			all = append(all, parseDeb822(ls)...)
		} else {
			all = append(all, parseOneLine(ls)...)
		}
	}
	return all
}

// lines returns the lines of a file, none when it cannot be read.
func lines(root fs.FS, name string) []string {
	b, err := fs.ReadFile(root, name)
	if err != nil || len(b) > maxSources {
		return nil
	}
	var ls []string
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxSources)
	for sc.Scan() {
		ls = append(ls, strings.TrimRight(sc.Text(), " \t\r"))
	}
	return ls
}

// parseOneLine reads `deb [ option=value ... ] uri suite component...`.
func parseOneLine(ls []string) []source {
	var all []source
	for _, l := range ls {
		l, _, _ = strings.Cut(l, "#")
		f := strings.Fields(l)
		if len(f) < 3 {
			continue
		}
		s := source{types: f[:1]}
		f = f[1:]
		if strings.HasPrefix(f[0], "[") {
			options, rest, ok := strings.Cut(strings.Join(f, " ")[1:], "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(options) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					s.signedBy = v
				}
			}
			f = strings.Fields(rest)
		}
		if len(f) < 2 {
			continue
		}
		s.uris, s.suites, s.components = f[:1], f[1:2], f[2:]
		all = append(all, s)
	}
	return all
}

// parseDeb822 reads stanzas of `Field: values`, continued on indented lines and
// separated by empty ones; comments may stand between the lines of a field.
func parseDeb822(ls []string) []source {
	var all []source
	var s source
	var field string
	flush := func() {
		if len(s.types) > 0 && len(s.uris) > 0 {
			all = append(all, s)
		}
		s, field = source{}, ""
	}
	for _, l := range ls {
		if strings.HasPrefix(l, "#") {
			continue
		}
		if l == "" {
			flush()
			continue
		}
		value := l
		if l[0] != ' ' && l[0] != '\t' {
			name, v, ok := strings.Cut(l, ":")
			if !ok {
				field = ""
				continue
			}
			field, value = strings.ToLower(strings.TrimSpace(name)), v
		}
		f := strings.Fields(value)
		switch field {
		case "types":
			s.types = append(s.types, f...)
		case "uris":
			s.uris = append(s.uris, f...)
		case "suites":
			s.suites = append(s.suites, f...)
		case "components":
			s.components = append(s.components, f...)
		case "signed-by":
			s.signedBy += strings.Join(f, " ")
		case "enabled":
			switch strings.ToLower(strings.Join(f, "")) {
			case "no", "false", "without", "off", "disable", "0":
				s.disabled = true
			}
		}
	}
	flush()
	return all
}
