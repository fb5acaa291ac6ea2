// SPDX-License-Identifier: Apache-2.0

// Package fswatch tells when Go source in a set of directories is saved, by inotify
// (inotify(7)). Directories are watched, not files, since editors save by writing
// another file and renaming it. One save is told once: what follows within a short
// time belongs to it.
//
// A [Watcher] owns its descriptor until Close. Its methods are safe for concurrent
// use; one goroutine at a time may call Next.
package fswatch
