// SPDX-License-Identifier: Apache-2.0

// Command toebox-device is one adapter as a process: a vfio-user server for
// QEMU's vfio-user-pci.
//
//	toebox-device --socket-path=S --net=nat:fwd=tcp:127.0.0.1:8080-:80
//	qemu-system-x86_64 ... -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"S"}}'
//
// Guest memory must be shared (memory-backend-memfd, share=on). The process
// prints nothing, logs to its standard error, ends with status 0 on SIGTERM,
// SIGINT, or the end of the pipe --parent-fd, with 2 for wrong arguments, 125
// when it could not start, and 1 for what goes wrong later. Before it ends, the
// adapter has half a second (--stop-time) for an orderly stop (SPEC.md §11.1). Statistics are
// served as JSON by HTTP on the socket --control-path: GET /stats.
//
// A parent that starts one process after another for the same adapter keeps what
// must last: --fd, --control-fd and fwd-fd are sockets that listen already, so that
// clients wait in between, fd of the network tap is the file of a tap device, --pcap-fd is a file that each process goes on with, and
// TOEBOX_GENERATION in the environment counts the starts.
//
// It uses half the machine's processors, the others being the virtual machine's;
// GOMAXPROCS in the environment says otherwise. VFIOUSERDEBUG=1 logs each message of vfio-user.
package main
