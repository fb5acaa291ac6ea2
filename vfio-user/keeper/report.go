// SPDX-License-Identifier: Apache-2.0

package keeper

import "time"

// KindReplaced is the Kind of the report that answers an [Order].
const KindReplaced = "replaced"

// Order asks the command keeper, over its control connection, to replace the
// server by one that this command starts. It is one line of JSON.
type Order struct {
	Server []string `json:"server"`
}

// Report is what the command keeper tells over its control connection: an
// [Event], whose kind is Kind in words, or the answer to an [Order]. It is one
// line of JSON.
type Report struct {
	Kind       string        `json:"kind"`
	Generation uint32        `json:"generation"`
	PID        int           `json:"pid,omitempty"`
	Error      string        `json:"error,omitempty"` // of the answer: why the old command serves on
	Expected   bool          `json:"expected,omitempty"`
	Took       time.Duration `json:"took,omitempty"`
	Maps       int           `json:"maps,omitempty"`
	Trace      string        `json:"trace,omitempty"`
}

// Report returns the event in the form for a control connection.
func (e Event) Report() Report {
	r := Report{
		Kind: e.Kind.String(), Generation: e.Generation, PID: e.PID, Expected: e.Expected,
		Took: e.Took, Maps: e.Maps, Trace: string(e.Trace),
	}
	if e.Err != nil {
		r.Error = e.Err.Error()
	}
	return r
}
