// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"toebox/images/proc"
)

// Names and suites: never versions, which vanish from mirrors.
const (
	suiteBase      = "trixie"
	suiteBackports = "trixie-backports"
	architecture   = "amd64"
)

const (
	fetchPoll   = 250 * time.Millisecond
	aptPatience = 20 * time.Minute // for one apt call, the longest being a download
	maxErrText  = 400
)

// archiveKeys are the public keys that sign Debian 12 and 13, as published in
// Debian's package debian-archive-keyring.
//
//go:embed keys/debian-archive.gpg
var archiveKeys []byte

// errNoApt says what to do where Debian's packages cannot be had.
var errNoApt = errors.New("toolchain: getting QEMU and a kernel needs apt-get, apt-config and dpkg-deb, which are not on PATH: " +
	"install a QEMU >= 10.1 and name it in TOEBOX_QEMU, name a kernel in TOEBOX_KERNEL and its modules in TOEBOX_MODULES")

// An apt is one apt with everything of its own below dir.
type apt struct {
	dir    string
	report Progress
}

// An item is one package file apt would fetch.
type item struct {
	Package
	size int64
}

// openApt sets up apt below dir against the first of mirrors that answers with
// signed indexes of both suites.
func openApt(ctx context.Context, dir string, mirrors []string, report Progress) (*apt, error) {
	for _, tool := range []string{"apt-get", "apt-config", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, errNoApt
		}
	}
	if len(mirrors) == 0 {
		return nil, errors.New("toolchain: this machine's apt sources name no Debian archive: set TOEBOX_DEBIAN_MIRROR to a mirror's address")
	}
	a := &apt{dir: dir, report: report}
	transport := a.transport(ctx)
	var first error
	for _, m := range mirrors {
		if err := a.configure(m, transport); err != nil {
			return nil, err
		}
		step(report, "apt: reading the package lists of %s", redact(m))
		_, err := a.run(ctx, dir, "apt-get", "-q", "update")
		if err == nil {
			return a, nil
		}
		if first == nil {
			first = fmt.Errorf("toolchain: no package lists from %s: %w (is there a network? TOEBOX_DEBIAN_MIRROR names another mirror)", redact(m), err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// configure writes apt.conf, sources and keys, and leaves the cached lists alone.
func (a *apt) configure(mirror string, transport []string) error {
	if strings.ContainsAny(mirror, " \t\r\n") || !strings.Contains(mirror, ":") {
		return fmt.Errorf("toolchain: %q is not the address of a mirror", mirror)
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "empty"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return fmt.Errorf("toolchain: apt: %w", err)
		}
	}
	var c strings.Builder
	set := func(name, value string) { fmt.Fprintf(&c, "%s %s;\n", name, strconv.Quote(value)) }
	at := func(p string) string { return filepath.Join(a.dir, p) }
	set("Dir", a.dir)
	set("Dir::State", a.dir)
	set("Dir::State::lists", at("lists"))
	set("Dir::State::status", at("status"))
	set("Dir::State::extended_states", at("extended_states"))
	set("Dir::Cache", at("cache"))
	set("Dir::Log", at("empty"))
	set("Dir::Etc", at("empty"))
	set("Dir::Etc::sourcelist", at("toebox.sources"))
	for _, d := range []string{"sourceparts", "parts", "preferencesparts", "trustedparts"} {
		set("Dir::Etc::"+d, at("empty"))
	}
	for _, d := range []string{"main", "preferences", "trusted"} {
		set("Dir::Etc::"+d, "/dev/null")
	}
	set("APT::Architecture", architecture)
	set("APT::Architectures", architecture)
	set("APT::Install-Recommends", "false")
	set("APT::Install-Suggests", "false")
	set("APT::Get::List-Cleanup", "true")
	set("APT::Update::Error-Mode", "any")
	set("Acquire::Languages", "none")
	set("Acquire::GzipIndexes", "true")
	set("Acquire::Retries", "2")
	set("Acquire::http::Timeout", "20")
	set("Acquire::https::Timeout", "20")
	if os.Geteuid() == 0 {
		// apt would drop to _apt, who may not enter root's cache.
		set("APT::Sandbox::User", "root")
	}
	for _, l := range transport {
		c.WriteString(l + "\n")
	}
	for name, dir := range map[string]string{"netrc": "/etc/apt/auth.conf", "netrcparts": "/etc/apt/auth.conf.d"} {
		if f, err := os.Open(dir); err == nil {
			f.Close() //nolint:errcheck // only asked whether it opens
			set("Dir::Etc::"+name, dir)
		}
	}
	files := map[string]string{
		"apt.conf": c.String(),
		"status":   "",
		"keys.gpg": string(archiveKeys),
		"toebox.sources": "Types: deb\nURIs: " + mirror + "\nSuites: " + suiteBase + " " + suiteBackports +
			"\nComponents: main\nArchitectures: " + architecture + "\nSigned-By: " + at("keys.gpg") + "\n",
	}
	for name, text := range files {
		if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("toolchain: apt: %w", err)
		}
	}
	return nil
}

// transport returns the lines of the machine's apt configuration that say how to
// reach a mirror (proxies, certificates) and how strictly to take its dates.
func (a *apt) transport(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil
	}
	return transportLines(string(out))
}

func transportLines(dump string) []string {
	var keep []string
	for l := range strings.Lines(dump) {
		l = strings.TrimSpace(l)
		name, value, ok := strings.Cut(l, " ")
		if !ok || value == `"";` {
			continue
		}
		lower := strings.ToLower(name)
		switch {
		case strings.Contains(lower, "timeout"):
		case strings.HasPrefix(lower, "acquire::http::"), strings.HasPrefix(lower, "acquire::https::"),
			strings.HasPrefix(lower, "acquire::ftp::"),
			lower == "acquire::check-date", lower == "acquire::check-valid-until", lower == "acquire::max-futuretime":
			keep = append(keep, l)
		}
	}
	return keep
}

// resolve lists what installing the named packages into an empty system takes.
func (a *apt) resolve(ctx context.Context, suite string, names ...string) ([]item, error) {
	args := append([]string{"-q", "-y", "--print-uris", "-t", suite, "install"}, names...)
	out, err := a.run(ctx, a.dir, "apt-get", args...)
	if err != nil {
		return nil, fmt.Errorf("toolchain: %s from %s: %w", strings.Join(names, ", "), suite, err)
	}
	items := parseURIs(out)
	if len(items) == 0 {
		return nil, fmt.Errorf("toolchain: %s from %s: apt named no package files", strings.Join(names, ", "), suite)
	}
	return items, nil
}

// parseURIs reads apt-get --print-uris: `'uri' name_version_arch.deb size hash`.
func parseURIs(out []byte) []item {
	var items []item
	sc := bufio.NewScanner(bytes.NewReader(out))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") || !strings.HasSuffix(f[1], ".deb") {
			continue
		}
		part := strings.Split(f[1], "_")
		size, err := strconv.ParseInt(f[2], 10, 64)
		if len(part) != 3 || err != nil || size < 0 {
			continue
		}
		version, err := url.PathUnescape(part[1])
		if err != nil {
			continue
		}
		items = append(items, item{Package{part[0], version}, size})
	}
	return items
}

// fetch downloads items and unpacks them below root. apt has checked the hash of
// each file against the signed index when it returns.
func (a *apt) fetch(ctx context.Context, what, root string, items []item) error {
	debs, err := os.MkdirTemp(a.dir, "debs-")
	if err != nil {
		return fmt.Errorf("toolchain: apt: %w", err)
	}
	defer os.RemoveAll(debs) //nolint:errcheck // only wasted space if it stays
	var total int64
	args := []string{"-q", "download"}
	for _, it := range items {
		total += it.size
		args = append(args, it.Name+"="+it.Version)
	}
	step(a.report, "%s: downloading %d packages, %.1f MB", what, len(items), float64(total)/1e6)
	done := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		a.watch(what, debs, total, done)
	}()
	_, err = a.run(ctx, debs, "apt-get", args...)
	close(done)
	<-watching
	if err != nil {
		return fmt.Errorf("toolchain: %s: download: %w (is there a network? TOEBOX_DEBIAN_MIRROR names another mirror)", what, err)
	}
	files, err := filepath.Glob(filepath.Join(globEscape(debs), "*.deb"))
	if err != nil || len(files) != len(items) {
		return fmt.Errorf("toolchain: %s: %d of %d packages downloaded", what, len(files), len(items))
	}
	step(a.report, "%s: unpacking", what)
	for _, f := range files {
		if _, err := a.run(ctx, debs, "dpkg-deb", "-x", f, root); err != nil {
			return fmt.Errorf("toolchain: %s: unpack %s: %w", what, filepath.Base(f), err)
		}
	}
	return nil
}

// watch reports the size of what lies in dir until done is closed.
func (a *apt) watch(what, dir string, total int64, done <-chan struct{}) {
	if a.report == nil {
		return
	}
	t := time.NewTicker(fetchPoll)
	defer t.Stop()
	for {
		select {
		case <-done:
			a.report.Amount(what, total, total)
			return
		case <-t.C:
			var n int64
			// Entries come and go while apt works: what cannot be read counts nothing.
			filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { //nolint:errcheck // callback returns nil
				if err != nil {
					return nil
				}
				if st, err := d.Info(); err == nil && st.Mode().IsRegular() {
					n += st.Size()
				}
				return nil
			})
			a.report.Amount(what, min(n, total), total)
		}
	}
}

// run runs one tool of apt's with our configuration and returns its output; the
// error carries what the tool said was wrong.
func (a *apt) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, aptPatience, fmt.Errorf("%s: not done after %v: %w", name, aptPatience, context.DeadlineExceeded))
	defer cancel()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "LC_") || strings.HasPrefix(s, "LANG")
	}), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := proc.Run(ctx, cmd); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		if text := complaint(errs.String() + out.String()); text != "" {
			return nil, errors.New(text)
		}
		return nil, err
	}
	return out.Bytes(), nil
}

// complaint takes the first error line out of a tool's output.
func complaint(out string) string {
	var last string
	for l := range strings.Lines(out) {
		l = strings.TrimSpace(l)
		if text, ok := strings.CutPrefix(l, "E: "); ok {
			return clip(text)
		}
		if text, ok := strings.CutPrefix(l, "Err:"); ok && last == "" {
			last = text
		} else if strings.Contains(l, "error:") || strings.HasPrefix(l, "W: ") {
			last = l
		}
	}
	return clip(last)
}

func clip(s string) string {
	if len(s) > maxErrText {
		return s[:maxErrText] + "..."
	}
	return s
}

// redact removes a password from a mirror's address.
func redact(uri string) string {
	if u, err := url.Parse(uri); err == nil {
		return u.Redacted()
	}
	return uri
}
