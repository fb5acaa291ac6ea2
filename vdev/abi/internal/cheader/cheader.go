// SPDX-License-Identifier: Apache-2.0

package cheader

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"strings"
)

// Name is the header's file name, in the folder of package abi.
const Name = "toebox.h"

const head = `// SPDX-License-Identifier: Apache-2.0
/*
 * toebox offload adapter: the programming interface of SPEC.md in C11 and C++11.
 *
 * Made by "go generate ./vdev/abi" from package abi. Do not edit.
 *
 * Everything is little endian, except network addresses, which are byte strings
 * in network order. The structs are for hosts that are little endian; others
 * swap each field. No struct has a hole or needs packing.
 */
#ifndef TOEBOX_H
#define TOEBOX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define TOEBOX_ASSERT(cond, text) static_assert(cond, text)
#else
#define TOEBOX_ASSERT(cond, text) _Static_assert(cond, text)
#endif
`

const tail = `
/* Offsets in BAR0 of what there is for each queue (SPEC.md §3). */
#define TOEBOX_REG_OF_QUEUE(q, reg) (TOEBOX_REG_QUEUE_BASE + TOEBOX_REG_QUEUE_STRIDE * (uint32_t)(q) + (reg))
#define TOEBOX_REG_IN_DOORBELL(q) (TOEBOX_REG_DOORBELLS + TOEBOX_DOORBELL_STRIDE * (uint32_t)(q))
#define TOEBOX_REG_OUT_DOORBELL(q) (TOEBOX_REG_IN_DOORBELL(q) + TOEBOX_DOORBELL_OUT)

/* Bytes 0-3 of a descriptor as one word, to be stored last (SPEC.md §4.2). */
static inline uint32_t toebox_word(uint8_t type, uint8_t flags, uint16_t aux, uint8_t bits)
{
	return (uint32_t)((type & 0x1fu) << 2 | bits) | (uint32_t)flags << 8 | (uint32_t)aux << 16;
}

/* Type of a descriptor with this word 0. */
static inline uint8_t toebox_word_type(uint32_t word)
{
	return (uint8_t)(word >> 2 & 0x1fu);
}

/* The event word that asks to be told when the slot with that index is done (SPEC.md §4.4). */
static inline uint32_t toebox_event_at(uint32_t index)
{
	return UINT32_C(1) << 30 | (index & TOEBOX_INDEX_MASK);
}

/* Whether a producer that went from one index to the next tells (SPEC.md §4.4). */
static inline int toebox_event_wants(uint32_t event, uint32_t old_index, uint32_t new_index)
{
	uint32_t made = (new_index - old_index) & TOEBOX_INDEX_MASK;

	if (made == 0 || event >> 30 == 0)
		return 0;
	if (event >> 30 != 1)
		return 1;
	return ((new_index - (event & TOEBOX_INDEX_MASK) - 1) & TOEBOX_INDEX_MASK) < made;
}

#endif /* TOEBOX_H */
`

// Generate returns the header for package abi in dir.
func Generate(dir string) ([]byte, error) {
	all, err := blocks(dir)
	if err != nil {
		return nil, fmt.Errorf("cheader: %w", err)
	}
	n, err := readNames(dir)
	if err != nil {
		return nil, fmt.Errorf("cheader: %w", err)
	}
	var b bytes.Buffer
	b.WriteString(head)
	macros, err := n.macros(all)
	if err != nil {
		return nil, fmt.Errorf("cheader: %w", err)
	}
	// Comments name constants, too.
	word := regexp.MustCompile(`\b[A-Z]\w+\b`)
	inC := func(s string) string {
		return word.ReplaceAllStringFunc(s, func(w string) string { return cmp.Or(macros[w], w) })
	}
	for _, blk := range all {
		fmt.Fprintf(&b, "\n")
		if blk.doc != "" {
			fmt.Fprintf(&b, "/* %s */\n", inC(blk.doc))
		}
		for _, c := range blk.constants {
			macro := macros[c.name]
			line := fmt.Sprintf("#define %-39s %s", macro, literal(c))
			if c.comment != "" && !strings.HasSuffix(macro, "_"+c.comment) {
				line += " /* " + inC(c.comment) + " */"
			}
			b.WriteString(line + "\n")
		}
	}
	for _, l := range layouts() {
		if err := l.write(&b); err != nil {
			return nil, fmt.Errorf("cheader: %w", err)
		}
	}
	b.WriteString(tail)
	return b.Bytes(), nil
}

// macros are the macros of constants, by their names in Go.
func (n *names) macros(all []block) (map[string]string, error) {
	macros, taken := map[string]string{}, map[string]string{}
	for _, blk := range all {
		for _, c := range blk.constants {
			m := n.c(c)
			if other := taken[m]; other != "" {
				return nil, fmt.Errorf("%s and %s are both %s", other, c.name, m)
			}
			taken[m], macros[c.name] = c.name, m
		}
	}
	return macros, nil
}

// write writes a struct, and that it is as SPEC.md says.
func (l *layout) write(b *bytes.Buffer) error {
	fmt.Fprintf(b, "\n/* %s */\nstruct %s {\n", l.doc, l.name)
	var asserts strings.Builder
	off := 0
	for _, f := range l.fields {
		decl := f.ctype() + " " + f.name
		if f.count > 0 {
			decl += fmt.Sprintf("[%d]", f.count)
		}
		decl += ";"
		if f.comment != "" {
			decl += " /* " + f.comment + " */"
		}
		fmt.Fprintf(b, "\t%s\n", decl)
		if align := min(f.size, 8); align&(align-1) == 0 && off%align != 0 {
			return fmt.Errorf("%s.%s at %d has a hole before it", l.name, f.name, off)
		}
		fmt.Fprintf(&asserts, "TOEBOX_ASSERT(offsetof(struct %s, %s) == %d, \"%s.%s\");\n", l.name, f.name, off, l.name, f.name)
		off += f.size * max(f.count, 1)
	}
	if off != l.size {
		return fmt.Errorf("%s has %d bytes, not %d", l.name, off, l.size)
	}
	fmt.Fprintf(b, "};\nTOEBOX_ASSERT(sizeof(struct %s) == %d, \"%s\");\n%s", l.name, l.size, l.name, asserts.String())
	return nil
}
