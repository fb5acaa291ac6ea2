// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"testing"

	"toebox/vfio-user/vfiousertest"
)

func TestMain(m *testing.M) { vfiousertest.Main(m) }
