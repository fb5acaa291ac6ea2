// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func load32(p unsafe.Pointer) uint32
TEXT ·load32(SB), NOSPLIT, $0-12
	MOVD p+0(FP), R0
	MOVWU (R0), R1
	DMB $0x1 // oshld: later loads of memory come after
	MOVW R1, ret+8(FP)
	RET

// func store32(p unsafe.Pointer, v uint32)
TEXT ·store32(SB), NOSPLIT, $0-12
	MOVD p+0(FP), R0
	MOVW v+8(FP), R1
	DMB $0x2 // oshst: earlier stores come before
	MOVW R1, (R0)
	RET
