// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// Addresses are of hosts that do not exist: which mirror a machine uses is its own
// affair.
func TestMirrors(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{name: "nothing"},
		{
			name: "deb822 with comments, continuation and two suites",
			files: map[string]string{"etc/apt/sources.list.d/debian.sources": `# a comment
Types: deb deb-src
# another
URIs:
 http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
`},
			want: []string{"http://mirror.invalid/debian"},
		},
		{
			name: "one line, with options",
			files: map[string]string{"etc/apt/sources.list": `
deb-src http://src.invalid/debian trixie main
deb [ arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg ] https://one.invalid/debian/ trixie main contrib # here
deb [arch=amd64 http://broken.invalid/debian trixie main
deb
deb cdrom:[Debian]/ trixie main
`},
			want: []string{"https://one.invalid/debian/"},
		},
		{
			name: "the real archive comes before others that use its code names",
			files: map[string]string{
				"etc/apt/sources.list.d/a.list":    "deb https://vendor.invalid/apt bookworm main\n",
				"etc/apt/sources.list.d/b.sources": "Types: deb\nURIs: mirror+file:/etc/apt/mirrors/debian.list\nSuites: bookworm bookworm-updates\nComponents: main\n",
				"etc/apt/sources.list.d/c.list":    "deb http://real.invalid/debian bookworm main\n",
			},
			want: []string{"http://real.invalid/debian", "mirror+file:/etc/apt/mirrors/debian.list", "https://vendor.invalid/apt"},
		},
		{
			name: "disabled, other components, other suites, not listed",
			files: map[string]string{
				"etc/apt/sources.list.d/a.sources": "Enabled: no\nTypes: deb\nURIs: http://off.invalid/debian\nSuites: trixie\nComponents: main\n",
				"etc/apt/sources.list.d/b.list":    "deb http://docker.invalid/linux/debian bookworm stable\ndeb http://pg.invalid/apt bookworm-pgdg main\n",
				"etc/apt/sources.list.d/c.save":    "deb http://old.invalid/debian trixie main\n",
			},
		},
		{
			name: "a derivative: beside its own mirror, or where python-apt says",
			files: map[string]string{
				"etc/apt/sources.list.d/ubuntu.sources":      "Types: deb\nURIs: http://mirror.invalid/ubuntu/\nSuites: noble noble-updates\nComponents: main universe\n",
				"usr/share/python-apt/templates/Debian.info": "ChangelogURI: x\n\nSuite: {series}\nBaseURI: https://deb.invalid/debian/\n\nSuite: sid\nBaseURI: https://other.invalid/debian/\n",
			},
			want: []string{"https://deb.invalid/debian/", "http://mirror.invalid/debian"},
		},
		{
			name:  "garbage",
			files: map[string]string{"etc/apt/sources.list.d/x.sources": "\x00\xff: :\n\n:::\nTypes deb\n Types: deb\nURIs: http://[::bad\nSuites: trixie\n", "etc/apt/sources.list": strings.Repeat("deb ", 1<<18)},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := fstest.MapFS{}
			for name, text := range test.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			if got := Mirrors(root); !slices.Equal(got, test.want) {
				t.Errorf("mirrors = %q, want %q", got, test.want)
			}
		})
	}
}

func TestTransportLines(t *testing.T) {
	got := transportLines(`APT "";
Acquire "";
Acquire::http::Proxy "http://proxy.invalid:3128";
Acquire::http::Timeout "3";
Acquire::https::CaInfo "/etc/ca.pem";
Acquire::AllowInsecureRepositories "1";
Acquire::Check-Date "false";
Acquire::http "";
DPkg::Post-Invoke:: "rm -rf /";
`)
	want := []string{
		`Acquire::http::Proxy "http://proxy.invalid:3128";`,
		`Acquire::https::CaInfo "/etc/ca.pem";`,
		`Acquire::Check-Date "false";`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
}

func TestParseURIs(t *testing.T) {
	got := parseURIs([]byte(`Reading package lists...
'http://m.invalid/pool/q/qemu_1%3a11.1+ds-1%7ebpo13+1_amd64.deb' qemu-system-x86_1%3a11.1+ds-1%7ebpo13+1_amd64.deb 10377056 SHA256:aa
'http://m.invalid/x' odd.deb 1 SHA256:aa
'http://m.invalid/x' a_1_all.deb -5 SHA256:aa
'http://m.invalid/x' a_%zz_all.deb 5 SHA256:aa
`))
	want := []item{{Package{"qemu-system-x86", "1:11.1+ds-1~bpo13+1"}, 10377056}}
	if !slices.Equal(got, want) {
		t.Errorf("items = %+v, want %+v", got, want)
	}
}

func TestKernelItems(t *testing.T) {
	all := []item{
		{Package: Package{Name: "linux-image-cloud-amd64"}}, {Package: Package{Name: "linux-image-6.12.9+deb13-cloud-amd64"}},
		{Package: Package{Name: "linux-modules-7.3-cloud-amd64"}}, {Package: Package{Name: "linux-base"}}, {Package: Package{Name: "kmod"}},
	}
	got := kernelItems(all)
	if len(got) != 2 || got[0].Name != "linux-image-6.12.9+deb13-cloud-amd64" || got[1].Name != "linux-modules-7.3-cloud-amd64" {
		t.Errorf("items = %+v", got)
	}
}
