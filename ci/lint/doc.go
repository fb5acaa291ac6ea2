// SPDX-License-Identifier: Apache-2.0

// Package lint holds the rules of the house as tests: which package may import
// which (design section 2), what every file and package has to carry, and what
// no file may contain. It has no code of its own.
package lint
