# Everything one does with this checkout. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# STATE is where `make up` keeps all it needs: guest image, containerd's root, layers, logs. `make down` removes it.
STATE    ?= $(CURDIR)/.state
# FUZZINPUTS is how many inputs `make fuzz` gives each target.
FUZZINPUTS ?= 20000
BIN      := $(CURDIR)/bin
GO       ?= go

export CGO_ENABLED := 0
export PATH := $(BIN):$(PATH)
# Where the upper test tiers find what `make bin` and `make guest` made.
export BULKHEAD_TEST_BIN   := $(BIN)
export BULKHEAD_GUEST_DIR  := $(STATE)/guest

# The modules with code of our own, kube/ apart; tools/ only pins programs of others.
MODULES  := . test
# grpcnotrace leaves a debugging page of gRPC, with its HTML templates, out: 4 MiB of the shim, and of the memory of each pod.
GOBUILD  := $(GO) build -trimpath -tags grpcnotrace -ldflags "-s -w"
TESTTIER := $(GO) run ./internal/testtier -bin $(BIN) -guest $(STATE)/guest

CONTAINERD := github.com/containerd/containerd/v2
CNI        := github.com/containernetworking/plugins/plugins
# Whatever builds in kube/ has these flags, because Kubernetes is compiled once for each set of them. Leaving out parts of gRPC or
# Kustomize by tags makes it no smaller: etcd links the same.
KUBEBUILD  := -trimpath
# What asks for all packages of kube/ without building: the linter.
KUBELINT   := GOFLAGS="$$($(GO) env GOFLAGS) $(KUBEBUILD)" $(BIN)/golangci-lint run

# package:program that shows it is there. The runtime itself needs qemu-system-x86 and e2fsprogs; the guest image dpkg; a cluster
# nftables; the demo runc and busybox-static; only tests need erofs-utils and iproute2, and only `make generate` protobuf-compiler.
PACKAGES := qemu-system-x86:qemu-system-x86_64 e2fsprogs:mkfs.ext4 dpkg:dpkg-deb runc:runc busybox-static:busybox \
	erofs-utils:mkfs.erofs iproute2:ip nftables:nft protobuf-compiler:protoc

## help: list the targets
.PHONY: help
help:
	@sed -n 's/^## \([a-z0-9-]*\): \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do printf '  %-16s %s\n' "$$target" "$$text"; done

## up: install, build, create the embedded cluster "demo", run one manifest as an ordinary pod and in a VM
.PHONY: up
up: packages bin guest
	@BULKHEAD_STATE_DIR=$(STATE) examples/demo.sh

## down: end and remove everything that `make up` made (bin/ and Go's caches stay)
.PHONY: down
down:
	@if [ -e $(STATE) ]; then \
		[ -x $(BIN)/bulkhead ] || $(MAKE) --no-print-directory bin-bulkhead; \
		for cluster in $(STATE)/clusters/*/; do if [ -d "$$cluster" ]; then \
			$(BIN)/bulkhead cluster delete --state-dir $(STATE) --bin-dir $(BIN) "$$(basename "$$cluster")"; fi; done; \
		rm -rf $(STATE); \
	else echo "nothing to end: there is no $(STATE)"; fi

## packages: install the Debian packages that are missing, and say which
.PHONY: packages
packages:
	@missing=""; for p in $(PACKAGES); do \
		PATH=$$PATH:/usr/sbin:/sbin command -v "$${p#*:}" >/dev/null || missing="$$missing $${p%:*}"; done; \
	lists=/var/lib/apt/lists; \
	if [ -n "$$missing" ] || ! ls $$lists/*Packages* >/dev/null 2>&1 || [ -z "$$(find $$lists -maxdepth 0 -mtime -1)" ]; then \
		echo "packages: fetching apt's lists, which make guest needs too"; apt-get update -qq; touch $$lists; fi; \
	if [ -z "$$missing" ]; then echo "packages: all there"; else \
		echo "packages: installing$$missing"; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi

## bin: build all programs into bin/
.PHONY: bin bin-bulkhead bin-containerd bin-kube
bin: bin-bulkhead bin-containerd bin-kube

bin-bulkhead:
	$(GOBUILD) -o $(BIN)/ ./cmd/bulkhead ./cmd/containerd-shim-bulkhead-v2 ./cmd/bulkhead-guest

# containerd, its tools and the CNI plugins: pinned in kube/go.mod, which is where their version comes from too.
bin-containerd:
	@cd kube; version=$$($(GO) list -m -f '{{.Version}}' $(CONTAINERD)); \
	echo "containerd $$version, CNI plugins $$($(GO) list -m -f '{{.Version}}' github.com/containernetworking/plugins) (the first build takes minutes)"; \
	$(GO) build -trimpath -tags no_btrfs -ldflags "-s -w -X $(CONTAINERD)/version.Version=$$version" -o $(BIN)/ \
		$(CONTAINERD)/cmd/containerd $(CONTAINERD)/cmd/ctr $(CONTAINERD)/cmd/containerd-shim-runc-v2; \
	mkdir -p $(BIN)/cni; \
	$(GOBUILD) -o $(BIN)/cni/ $(CNI)/main/bridge $(CNI)/main/loopback $(CNI)/main/ptp $(CNI)/meta/portmap $(CNI)/meta/tuning $(CNI)/ipam/host-local

# All of Kubernetes in one program. It reports the version that kube/go.mod pins, and as its date the version's own, so that a
# commit always gives the same binary. The loop turns go's list of packages into a line for every hundred.
bin-kube:
	@cd kube; read -r version date < <($(GO) list -m -f '{{.Version}} {{.Time.Format "2006-01-02T15:04:05Z07:00"}}' k8s.io/kubernetes); \
	minor=$${version#v*.}; minor=$${minor%%.*}; major=$${version%%.*}; flags="-s -w"; \
	for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do \
		flags="$$flags -X $$package.gitVersion=$$version -X $$package.gitMajor=$${major#v} -X $$package.gitMinor=$$minor"; \
		flags="$$flags -X $$package.gitCommit= -X $$package.gitTreeState=clean -X $$package.buildDate=$$date"; done; \
	echo "Kubernetes $$version, etcd, CoreDNS, metrics-server (the first build takes seven minutes on two cores)"; \
	total=$$($(GO) list -deps ./cmd/bulkhead-kube | wc -l); \
	$(GO) build -v $(KUBEBUILD) -ldflags "$$flags" -o $(BIN)/ ./cmd/bulkhead-kube 2>&1 | { n=0; while IFS= read -r line; do \
		case $$line in "go: downloading "*) ;; *[!A-Za-z0-9/._~+-]*) echo "$$line";; \
		*) n=$$((n + 1)); [ $$((n % 100)) != 0 ] || echo "  compiled $$n packages of at most $$total";; esac; done; }; \
	ln -sf bulkhead-kube $(BIN)/kubectl

## guest: build the guest's kernel and initramfs into $(STATE)/guest, if the agent or the builder changed
.PHONY: guest
guest: bin-bulkhead
	@inputs=$$(cat $(BIN)/bulkhead-guest internal/guestimage/*.go | sha256sum); stamp=$(STATE)/guest/.inputs; \
	if [ "$$inputs" = "$$(cat $$stamp 2>/dev/null || true)" ]; then echo "guest: up to date"; else \
		mkdir -p $(STATE)/guest; rm -f $$stamp; \
		$(BIN)/bulkhead guest build --agent $(BIN)/bulkhead-guest --dir $(STATE)/guest; \
		echo "$$inputs" > $$stamp; fi

## test: run all tiers: unit, root, vm, e2e
.PHONY: test
test: packages bin guest
	@$(TESTTIER) unit root vm e2e

## unit: run the tests that need no root
.PHONY: unit
unit: bin-kube
	@$(TESTTIER) unit

## root: run the tests that need root: mounts, taps, cgroups, processes
.PHONY: root
root: packages bin-containerd bin-kube
	@$(TESTTIER) root

## vm: run the tests that boot VMs under a real containerd
.PHONY: vm
vm: packages bin guest
	@$(TESTTIER) vm

## e2e: run the tests that make a cluster
.PHONY: e2e
e2e: packages bin guest
	@$(TESTTIER) e2e

## fuzz: run each fuzz target on FUZZINPUTS inputs
.PHONY: fuzz
fuzz:
	@$(TESTTIER) -fuzzinputs $(FUZZINPUTS) fuzz

## bench: measure start, exec and memory beside runc
.PHONY: bench
bench: packages bin guest
	cd test && $(GO) run ./bench

## vet: go vet of every module with the tests of all tiers, for amd64 and, Kubernetes apart, arm64
.PHONY: vet
vet:
	@for arch in amd64 arm64; do for module in $(MODULES); do \
		echo "vet $$module $$arch"; (cd $$module; GOARCH=$$arch $(GO) vet -tags root,vm,e2e ./...); done; done
	@cd kube; echo "vet kube amd64"; GOARCH=amd64 $(GO) vet $(KUBEBUILD) -tags root,vm,e2e ./...
	@cd kube; echo "vet kube/internal arm64"; GOARCH=arm64 $(GO) vet $(KUBEBUILD) -tags root,vm,e2e ./internal/...

## vet-arm64: go vet of what vet leaves out: Kubernetes is compiled for arm64 for it
.PHONY: vet-arm64
vet-arm64:
	@cd kube; echo "vet kube arm64 (compiles Kubernetes: seven minutes)"; GOARCH=arm64 $(GO) vet $(KUBEBUILD) -tags root,vm,e2e ./...

## lint: golangci-lint, built from tools/
.PHONY: lint
lint: $(BIN)/golangci-lint
	@for module in $(MODULES); do echo "lint $$module"; (cd $$module; $(BIN)/golangci-lint run ./...); done
	@cd kube; echo "lint kube"; $(KUBELINT) ./...

$(BIN)/golangci-lint: tools/go.mod tools/go.sum
	@echo "building golangci-lint (takes minutes, once)"; mkdir -p $(BIN)
	cd tools && $(GO) build -trimpath -ldflags "-s -w" -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

## generate: regenerate the guest protocol's code
.PHONY: generate
generate: $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-ttrpc
	cd api/guest && protoc --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative guest.proto

$(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-ttrpc: go.mod
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
	@touch $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-ttrpc

## check-generate: fail if generated code is not what `make generate` makes
.PHONY: check-generate
check-generate:
	@before=$$(cat api/guest/*.pb.go | sha256sum); $(MAKE) --no-print-directory generate; \
	[ "$$before" = "$$(cat api/guest/*.pb.go | sha256sum)" ] || { echo "api/guest: generated code was out of date; commit what is there now"; exit 1; }

## clean: remove bin/
.PHONY: clean
clean:
	rm -rf $(BIN)
