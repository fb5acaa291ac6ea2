// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"encoding/json"
	"fmt"

	"toebox/images/control"
)

// jsonBody decodes what a request carries.
func jsonBody(st *control.Stream, v any) error {
	if err := json.Unmarshal(st.Request().Body, v); err != nil {
		return fmt.Errorf("%s: %w", st.Request().Kind, err)
	}
	return nil
}
