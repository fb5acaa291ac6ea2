// SPDX-License-Identifier: Apache-2.0

package sample_test

import (
	"testing"

	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }
