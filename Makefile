# SPDX-License-Identifier: Apache-2.0
#
# Thin aliases of the toebox command, so that `make run` and `toebox run` are the same.
# ARGS are passed on: make run ARGS='--port 9090'.

TOEBOX = bin/toebox
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run shell exec fw-load fw-watch test conformance doctor stats bench bench-micro clean lint fmt generate toebox

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

toebox: ## build bin/toebox
	@go build -o $(TOEBOX) ./images/cmd/toebox

run: toebox ## boot a VM with the adapter; a shell in it on a terminal
	@$(TOEBOX) run $(ARGS)

shell: toebox ## a shell in the running VM
	@$(TOEBOX) shell $(ARGS)

exec: toebox ## run a command in the running VM: make exec ARGS='-- uname -a'
	@$(TOEBOX) exec $(ARGS)

fw-load: toebox ## build the firmware and have it take over in the running VM
	@$(TOEBOX) fw load $(ARGS)

fw-watch: toebox ## do so at every saved change of its source
	@$(TOEBOX) fw watch $(ARGS)

stats: toebox ## the running adapter's counters
	@$(TOEBOX) stats $(ARGS)

test: ## what a developer runs before each commit
	@go run ./ci/cmd/check $(ARGS)

conformance: toebox ## all conformance functions on every rung
	@$(TOEBOX) test --strict $(ARGS)

bench: toebox ## the adapter beside virtio-net: a table, bench.json, bench.html
	@$(TOEBOX) bench $(ARGS)

bench-micro: ## the packages' own benchmarks, for benchstat
	@go test -run '^$$' -bench . -benchmem $(ARGS) ./vfio-user/... ./vdev/... ./firmware/... ./guestdriver/... ./ci/netns

doctor: toebox ## try what toebox needs, and name the cures
	@$(TOEBOX) doctor $(ARGS)

clean: toebox ## remove caches, run folders and binaries
	@$(TOEBOX) clean $(ARGS) && rm -rf bin

lint: ## formatting and vet
	@test -z "$$(gofmt -l . | tee /dev/stderr)" && go vet ./...

generate: ## make vdev/abi/toebox.h anew
	@go generate ./vdev/abi

fmt: ## format the sources
	@gofmt -w .
