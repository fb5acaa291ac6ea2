// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// The assembler has no STNP of vector registers: their encodings are written out
// (Arm ARM, C7.2, STNP SIMD&FP, 128-bit variant: 0xac000000 | imm7<<15 | Rt2<<10 |
// Rn<<5 | Rt, imm7 in units of 16 bytes).

// func stream(dst, src *byte, n uintptr)
TEXT ·stream(SB), NOSPLIT, $0-24
	MOVD dst+0(FP), R0
	MOVD src+8(FP), R1
	MOVD n+16(FP), R2

loop:
	VLD1.P 64(R1), [V0.B16, V1.B16, V2.B16, V3.B16]
	WORD   $0xac000400 // STNP Q0, Q1, [X0]
	WORD   $0xac010c02 // STNP Q2, Q3, [X0, #32]
	ADD    $64, R0
	SUBS   $64, R2
	BNE    loop

	// As the last of these stores, before those that publish the bytes.
	DMB $0xa // ISHST
	RET
