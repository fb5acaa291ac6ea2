// SPDX-License-Identifier: Apache-2.0

package vfiouser_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	vfiouser "toebox/vfio-user"
	"toebox/vfio-user/vfiousertest"
)

// Where specification and implementations differ, and the tests that hold this
// package to its choice:
//
//	row                                  test
//	unmap of what was never mapped       TestDisagreements/unmap never mapped
//	unmap of a superset                  TestDisagreements/unmap superset
//	unmap that cuts a map in two         TestDisagreements/unmap inside
//	map over another                     TestDisagreements/overlap
//	the same map again                   TestDisagreements/the same again
//	unmap all                            TestDisagreements/unmap all
//	entries of REGION_IO_FDS             TestRegionIOFDs/all
//	entries of 40 bytes, to a client     TestClientIOEvents/as the specification has it
//	reply to DMA_WRITE: 16 bytes         TestMessageReplies/write
//	reply to DMA_WRITE: 12 bytes         TestMessageReplies/write, count of 4 bytes
//	reply to DMA_WRITE: none             TestMessageReplies/write, header alone
//	head of DMA_READ and DMA_WRITE       TestMessageReplies/read
//	reply to MIG_DATA_WRITE              TestMigrationProtocol/write
//	end of MIG_DATA_READ                 TestMigrationProtocol/read short
//	ranges of DMA_LOGGING_START          TestMigrationProtocol/start with a pointer
//	a feature that is not supported      TestDisagreements/migration of a device that has none
//	map that wraps                       TestDisagreements/wraparound
//	map at an odd address                TestDisagreements/misaligned address
//	map of nothing                       TestDisagreements/size 0
//	read of nothing                      TestDisagreements/zero-count read
//	minor versions                       TestVersion/newer minor
//	capabilities nobody knows            TestVersion/unknown keys
//	capabilities nobody asked for        TestVersion/QEMU
//	write_multiple                       TestWriteMulti
//	messages in pieces                   TestSplit
//
// Known defects of other servers:
//
//	header in pieces                     TestSplit
//	body in pieces                       TestSplit
//	maps that wrap or are misaligned     TestDisagreements/wraparound
//	unmap of a superset keeps the map    TestDisagreements/unmap superset
//	a second client hangs                TestServe
//	REGION_WRITE_MULTI                   TestWriteMulti
//	logs and reports of other pages      TestDirtyLogSizes
//	BAR whose size is no power of two    TestOddRegion
//	disable from the middle of an index  TestUnassignFrom
//	features in short messages           TestMigrationProtocol/half a head
//	unmap in a short message             TestDisagreements/unmap all in half a payload
//	unmap that is never answered         TestStuckReader
//	unmap and SET_IRQS while stopped     TestStopped
//	more descriptors than agreed         TestRegionIOFDs/for a client of three
//	socket of a server that died         TestListen
//	maps inside a huge page              TestRoundOut
//	resample eventfd of INTx             TestINTx
//	one set of eventfds for all indexes  TestUnassignFrom
//	odd places of configuration space    TestOddRegion
//	device reset at the end              TestDisconnect
//
// What a client can do wrong:
//
//	second client                        TestServeConnTwice
//	gone in the middle of a message      TestFDLimits
//	descriptors where none belong        TestFDLimits
//	descriptors where none belong        TestDisagreements/unmap with a file
//	too many descriptors                 TestFDLimits
//	descriptors that did not fit         TestTruncatedRights
//	wrong argsz                          TestDisagreements/argsz too small
//	wrong argsz                          TestInfo
//	wrong argsz                          TestRegionIOFDs/argsz
//	unknown commands                     TestDisagreements/unknown
//	indexes out of range                 TestInfo
//	indexes out of range                 TestSetIRQs/no such index
//	flags out of range                   TestSetIRQs/unknown flag
//	flags out of range                   TestDisagreements/unknown flag
//	map of a closed file                 TestFilesOfAllKinds
//	map of a file that shrinks           TestShrunkenFile
//	map of a file that shrinks           TestFileIO
//	map of a sealed file                 TestFilesOfAllKinds/sealed against writes
//	map of a read-only file              TestFilesOfAllKinds/read-only
//	map of a pipe                        TestFilesOfAllKinds/pipe
//	map of a socket                      TestFilesOfAllKinds/socket
//	map of a folder                      TestFilesOfAllKinds/folder
//	map of /dev/null                     TestFilesOfAllKinds//dev/null
//
// TestRows checks that they exist.

// TestRows looks for each test that the tables name: a function, and in it the
// name of a case.
func TestRows(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tables string
	bodies := make(map[string]string)
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "rows_test.go" {
			tables = string(b)
		}
		for _, f := range strings.Split("\n"+string(b), "\nfunc ")[1:] {
			head, _, _ := strings.Cut(f, "(")
			bodies[head] = f
		}
	}
	rows := regexp.MustCompile(`(?m)^//\t(.*?) {2,}(Test\w+)(?:/(.*))?$`).FindAllStringSubmatch(tables, -1)
	if len(rows) < 60 {
		t.Errorf("%d rows", len(rows))
	}
	for _, row := range rows {
		body, ok := bodies[row[2]]
		if !ok || row[3] != "" && !strings.Contains(body, `"`+row[3]+`"`) {
			t.Errorf("%s: there is no %s/%s", row[1], row[2], row[3])
		}
	}
}

// TestOddRegion serves a BAR whose size is not a power of two, and accesses of odd
// sizes at odd places, in configuration space too.
func TestOddRegion(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.Regions[vfiouser.RegionBAR2] = vfiouser.Region{Size: 12288, Flags: rw}
	_, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	if r, err := c.Region(vfiouser.RegionBAR2); r.Size != 12288 || err != nil {
		t.Errorf("region %+v, %v", r, err)
	}
	for _, at := range []struct {
		region int
		offset uint64
	}{{vfiouser.RegionBAR2, 12288 - 5}, {vfiouser.RegionConfig, 0x3e}, {vfiouser.RegionConfig, 0xffb}, {vfiouser.RegionConfig, 0xa5}} {
		b := make([]byte, 5)
		if err := errors.Join(c.WriteRegion(at.region, at.offset, []byte("12345")), c.ReadRegion(at.region, at.offset, b)); err != nil || string(b) != "12345" {
			t.Errorf("region %d at %#x: %q, %v", at.region, at.offset, b, err)
		}
	}
}

// TestUnassignFrom takes eventfds away from the middle of an index on: those, and
// no others of this index or another.
func TestUnassignFrom(t *testing.T) {
	cfg := vfiousertest.Config()
	cfg.IRQs[vfiouser.IRQMSI] = vfiouser.IRQ{Count: 8, Flags: vfiouser.IRQEventFD}
	srv, c := vfiousertest.Start(t, vfiousertest.NewDevice(cfg), cfg, vfiouser.ClientConfig{})
	var fds []*vfiousertest.EventFD
	assign := func(index, n int) {
		for i := range n {
			e := vfiousertest.NewEventFD(t)
			fds = append(fds, e)
			if err := c.AssignIRQ(index, i, e.FD()); err != nil {
				t.Fatal(err)
			}
		}
	}
	assign(vfiouser.IRQINTx, 1)
	assign(vfiouser.IRQMSI, 8)
	assign(vfiouser.IRQMSIX, 8)
	check := func(step string, want string) {
		t.Helper()
		var got strings.Builder
		for i, e := range fds {
			index, vector := vfiouser.IRQINTx, i
			switch {
			case i > 8:
				index, vector = vfiouser.IRQMSIX, i-9
			case i > 0:
				index, vector = vfiouser.IRQMSI, i-1
			}
			if err := srv.Trigger(index, vector); err != nil {
				t.Error(err)
			}
			got.WriteByte("-+"[e.Take()])
		}
		if got.String() != want {
			t.Errorf("%s: %s, want %s", step, &got, want)
		}
		if err := c.MaskIRQ(vfiouser.IRQINTx, 0, 1, false); err != nil {
			t.Error(err)
		}
	}
	check("all", "+++++++++++++++++")
	if err := c.UnassignIRQ(vfiouser.IRQMSIX, 5, 2); err != nil {
		t.Error(err)
	}
	check("two of MSI-X", "++++++++++++++--+")
	if err := c.DisableIRQ(vfiouser.IRQMSI); err != nil {
		t.Error(err)
	}
	check("all of MSI", "+--------+++++--+")
}

// TestStopped has a stopped device go on serving maps, interrupts and registers.
func TestStopped(t *testing.T) {
	cfg := vfiousertest.Config()
	_, c := vfiousertest.Start(t, vfiousertest.NewMigrator(cfg), cfg, vfiouser.ClientConfig{})
	f := vfiousertest.Memory(t, 0x2000)
	e := vfiousertest.NewEventFD(t)
	for _, state := range []vfiouser.MigrationState{vfiouser.StateStop, vfiouser.StateResuming} {
		if err := errors.Join(c.Map(0, 0x1000, 0, rd|wr, f), c.SetMigrationState(state), c.Map(0x1000, 0x1000, 0x1000, rd|wr, f)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Unmap(0, 0x2000)
		if n != 0x2000 || err != nil {
			t.Errorf("state %d: unmap: %#x, %v", state, n, err)
		}
		if err := errors.Join(c.AssignIRQ(vfiouser.IRQMSIX, 0, e.FD()), c.DisableIRQ(vfiouser.IRQMSIX), c.ReadRegion(7, 0, make([]byte, 4))); err != nil {
			t.Errorf("state %d: %v", state, err)
		}
	}
}

// TestDisconnect keeps the state of a device over the end of a client.
func TestDisconnect(t *testing.T) {
	cfg := vfiousertest.Config()
	dev := vfiousertest.NewDevice(cfg)
	srv, conn := vfiousertest.Serve(t, dev, cfg)
	p := vfiousertest.NewPeer(t, conn)
	p.Version()
	expect(t, p.Do(region(2, 10, 0, 8, 4, 1, 2, 3, 4)), 0)
	conn.Close()
	<-dev.Gone
	p = vfiousertest.NewPeer(t, vfiousertest.Connect(t, srv))
	p.Version()
	if r := p.Do(region(3, 9, 0, 8, 4)); !slices.Equal(r.Payload[16:], []byte{1, 2, 3, 4}) {
		t.Errorf("the next client reads %x", r.Payload)
	}
	if calls := dev.Calls(); slices.Contains(calls, "reset") {
		t.Errorf("device saw %q", calls)
	}
}
