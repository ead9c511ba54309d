# Haven. "make help" lists the targets. Go, git and make are enough for all of
# them but "lab" and "ceph", which install what they need.

# Under sudo, /usr/local/go/bin is often not in the path.
GO ?= $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),go)

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BINARIES := havend haven haven-helper
# TAGS=ceph builds with stores in Ceph pools; it needs a C compiler and librados-dev.
TAGS     ?=
BUILD    := CGO_ENABLED=$(if $(filter ceph,$(TAGS)),1,0) $(GO) build -tags '$(TAGS)' -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

# The race detector needs a C compiler; without one the tests run all the same.
CC_FOUND := $(shell command -v $$($(GO) env CC) 2>/dev/null)

SEEDS    ?= 20
FUZZTIME ?= 60s
ARGS     ?=

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r t d; do printf '  %-9s %s\n' "$$t" "$$d"; done

.PHONY: build
build: ## build havend, haven and haven-helper into bin/
	@mkdir -p bin
	@for b in $(BINARIES); do echo "build bin/$$b $(VERSION)"; $(BUILD) -o "bin/$$b" "./cmd/$$b" || exit 1; done

.PHONY: test
test: ## unit, property and simulation tests, with the race detector where possible
ifneq ($(CC_FOUND),)
	CGO_ENABLED=1 $(GO) test -race -short -timeout 20m ./...
	CGO_ENABLED=0 $(GO) test -short -timeout 20m ./internal/sim ./internal/flight
else
	@echo "no C compiler: the tests run without the race detector (apt-get install gcc libc6-dev brings it)"
	CGO_ENABLED=0 $(GO) test -short -timeout 20m ./...
endif

.PHONY: long
long: ## the same tests with many more random cases; a quarter of an hour on two cores
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 60m ./...

# $(call install,FILE) installs what is missing of the Debian packages in FILE.
install = missing=""; for p in $$(sed 's/\#.*//' $(1)); do \
	[ "$$(dpkg-query -W -f '$${db:Status-Status}' "$$p" 2>/dev/null)" = installed ] || missing="$$missing $$p"; done; \
	[ -z "$$missing" ] || { echo "install$$missing"; \
	[ "$$(id -u)" = 0 ] || { echo "only root can install that" >&2; exit 1; }; \
	export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -q -y --no-install-recommends $$missing </dev/null; }

.PHONY: packages
packages:
	@[ "$$(id -u)" = 0 ] || { echo "the lab makes network namespaces and mounts: run it as root (sudo make lab)" >&2; exit 1; }
	@$(call install,test/lab/packages.txt)

# Lab tests of other packages stand beside what they test, with the same tag.
LAB_TESTS = $(shell grep -rl --include='*_test.go' '^//go:build.*\<lab\>' . 2>/dev/null | grep -v '^\./test/' | xargs -r -n1 dirname | sort -u)

.PHONY: lab
lab: packages build ## scenarios on real libvirtd, QEMU, BMCs and storage, as root
	HAVEN_LAB_RUNS=$${HAVEN_LAB_RUNS:-2} CGO_ENABLED=0 $(GO) test -tags lab -count=1 -timeout 46m -p 1 -parallel 2 -v ./test/lab/... $(LAB_TESTS) ./test/scenarios

# Packages with tests that need Ceph.
CEPH_TESTS = $(shell grep -rl --include='*_test.go' '^//go:build ceph$$' . 2>/dev/null | xargs -r -n1 dirname | sort -u)

.PHONY: ceph
ceph: ## stores in Ceph pools (build tag ceph), tested on a one-node Ceph that it installs
	@$(call install,test/lab/packages-ceph.txt)
	CGO_ENABLED=1 $(GO) vet -tags ceph $(CEPH_TESTS) ./internal/stores ./cmd/...
	CGO_ENABLED=1 $(GO) test -race -tags ceph -count=1 -timeout 15m -p 1 $(CEPH_TESTS) ./internal/stores
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) --no-print-directory cephlab; else echo "agents with a store in Ceph need the lab, and it root: sudo make cephlab"; fi

.PHONY: cephlab
cephlab: packages ## agents whose only store is in Ceph, in the lab, as root
	@$(call install,test/lab/packages-ceph.txt)
	CGO_ENABLED=1 $(GO) test -tags lab,ceph -count=1 -timeout 15m -v -run '^TestCeph$$' ./test/scenarios

.PHONY: sim
sim: ## the simulator: SEEDS=20 clusters with faults, in virtual time
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 60m ./internal/sim/... -args -seeds $(SEEDS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME=60s
	@failed=""; for hit in $$(grep -rhoE --with-filename --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's/func //' | tr -d ' '); do \
		file="$${hit%%:*}"; name="$${hit##*:}"; echo "fuzz $$name in $$(dirname "$$file")"; \
		CGO_ENABLED=0 $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$(dirname "$$file")" || failed="$$failed $$name"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

.PHONY: bench
bench: ## benchmarks
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench . -benchmem -timeout 30m ./...
	@$(MAKE) --no-print-directory detection
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) --no-print-directory phases; else echo "the phases of a recovery on real parts need root: sudo make phases"; fi

LIVES ?= 1

.PHONY: detection
detection: ## how soon a power cut is found in noise, and what noise alone leads to
	@CGO_ENABLED=0 $(GO) test -count=1 -run '^TestDetection$$' -v -timeout 120m ./internal/sim -args -table $(LIVES) >detection.out 2>&1 \
		|| { cat detection.out; exit 1; }; sed -n 's/^ *detection_test.go:[0-9]*: //p' detection.out; rm -f detection.out

.PHONY: phases
phases: packages ## how long each phase of a recovery takes, on real parts, as root
	CGO_ENABLED=0 $(GO) test -tags lab -count=1 -timeout 40m -v -run '^TestPhaseTable$$' ./test/scenarios

.PHONY: demo
demo: ## a cluster of five on this machine; make demo ARGS=--script plays a power cut
	CGO_ENABLED=0 $(GO) run ./test/demo $(ARGS)

# The linter is pinned by internal/tools/go.mod and built once.
bin/golangci-lint: internal/tools/go.mod internal/tools/go.sum
	@mkdir -p bin
	@echo "build bin/golangci-lint (this takes a minute or two)"
	@cd internal/tools && CGO_ENABLED=0 $(GO) build -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

.PHONY: lint
lint: bin/golangci-lint ## the house rules
	PATH="$(dir $(GO)):$$PATH" CGO_ENABLED=0 bin/golangci-lint run ./...

.PHONY: fmt
fmt: bin/golangci-lint ## format the code
	PATH="$(dir $(GO)):$$PATH" bin/golangci-lint fmt

.PHONY: licences
licences: ## collect the licence texts of all linked modules into build/licences/
	@rm -rf build/licences && mkdir -p build/licences
	@$(GO) list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' ./cmd/... | sort -u | while read -r path dir; do \
		name="$$(echo "$$path" | tr / _)"; found=""; \
		for f in "$$dir"/LICENSE* "$$dir"/License* "$$dir"/LICENCE* "$$dir"/COPYING* "$$dir"/NOTICE*; do \
			[ -f "$$f" ] && cp "$$f" "build/licences/$$name.$$(basename "$$f")" && chmod 644 "build/licences/$$name.$$(basename "$$f")" && found=1; done; \
		[ -n "$$found" ] || { echo "no licence in $$path" >&2; exit 1; }; done
	@cp LICENSE NOTICE THIRD_PARTY.md build/licences/

.PHONY: clean
clean: ## remove what was built
	rm -rf bin build
