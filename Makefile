# The targets people use. `make run` and `make test` are all that a newcomer needs.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X weft/api.version=$(VERSION)
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
tags     = $(shell sed 's/\#.*//' pack/profiles/$(1) | xargs | tr ' ' ',')
RACE    := ./api/... ./config/... ./dns/... ./firewall/... ./forward/... ./gateway ./gateway/exit ./gateway/nat64 ./ident/... ./ledger ./ledger/tx ./link/... ./meter/... ./node/... ./pay ./portal/... ./proxy/... ./route/... ./session/... ./shape/... ./tun/... ./wire/...
FUZZTIME ?= 30s

# Tests that draw their cases draw the same ones on every run, so that a commit passes or fails for its own sake; soak draws new ones.
DRAWN   := $(sort $(patsubst ./%,weft/%,$(patsubst %/,%,$(dir $(shell grep -rl '"pgregory.net/rapid"' --include=*_test.go ./*/)))))
SEED    := -rapid.seed=20261122
ALL      = $(shell go list ./...)
RACED    = $(shell go list $(RACE))

.PHONY: run build test check lint unit race cross emulate lab bench fuzz soak gen dist clean tools

# Build the node and run it. Without root it offers proxies instead of a network interface.
run: build
	bin/weft up

build:
	$(BUILD) -tags '$(call tags,full)' -o bin/weft ./cmd/weft
	$(BUILD) -tags '$(call tags,full) engine' -o bin/weft-ledger ./cmd/weft

# All tests. Those that need root or a tool that is missing are skipped, loudly.
test: tools build lint unit race cross emulate

# What to run before every commit: a minute.
check: lint
	go test ./...

lint:
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); test -z "$$out" || { echo "gofmt: run gofmt -w on: $$out"; exit 1; }
	go vet ./...
	go vet -tags router ./cmd/weft ./cli
	go tool staticcheck -tags engine ./...

# Worlds of real processes keep time: they run one after another, and not beside the other tests.
unit:
	@if [ "$$(id -u)" != 0 ]; then echo; echo "*** not root: tests with network namespaces and real interfaces are SKIPPED. All of them: sudo make test"; echo; fi
	go test -timeout 15m $(filter-out weft/lab/netns weft/lab/bench weft/ledger/bft/% $(DRAWN),$(ALL))
	go test -timeout 15m $(filter-out weft/ledger/bft weft/ledger/lite,$(DRAWN)) $(SEED)
	go test -timeout 15m -tags engine ./ledger/bft/bftclient
	go test -timeout 15m -tags engine ./ledger/bft ./ledger/lite $(SEED)
	sh ledger/bft/testdata/older-engine
	go test -timeout 15m -p 1 ./lab/netns ./lab/bench

race:
	CGO_ENABLED=1 go test -race -timeout 15m $(filter-out $(DRAWN),$(RACED))
	CGO_ENABLED=1 go test -race -timeout 15m $(filter $(DRAWN),$(RACED)) $(SEED) -rapid.checks=25

# Everything that we promise to build for, without linking where that is enough.
CROSS := linux/amd64 linux/arm64 linux/arm linux/mipsle darwin/arm64 windows/amd64
cross:
	@for t in $(CROSS); do \
		tags='$(call tags,full)'; case $$t in linux/arm|linux/mipsle) tags='$(call tags,router)';; esac; \
		echo "build $$t $${tags:-full}"; \
		CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/} GOARM=7 GOMIPS=softfloat go build -tags "$$tags" -o /dev/null ./cmd/weft || exit 1; \
	done

# The core rooms on a 32-bit router's processor, emulated: alignment, sizes of int, softfloat. Long random walks have been done elsewhere.
emulate:
	@if command -v qemu-mipsel-static >/dev/null; then \
		CGO_ENABLED=0 GOARCH=mipsle GOMIPS=softfloat go test -short -skip 'Against|AnyPattern|Greedy|HonestLoss' -tags router -exec qemu-mipsel-static ./ident ./wire ./shape ./forward ./firewall ./session ./config ./gateway ./gateway/nat64 ./meter ./ledger ./ledger/tx ./ledger/lite; \
	else echo; echo "*** qemu-mipsel-static is missing: tests on a router's processor are SKIPPED"; echo; fi

# What the tests need beyond Go, on Debian and its kin.
tools:
	@pack/test-tools

# A neighbourhood of six nodes in network namespaces, on this machine. Needs root.
lab: build
	bin/weft lab demo

# Weft beside Yggdrasil, wireguard-go and the kernel, in one run. Needs root.
bench: build
	bin/weft lab bench

fuzz:
	@for p in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
		done; \
	done

# The whole test suite over and over, in random order, until it fails.
soak:
	WEFT_SIM_NODES=1000 go test -count=1 -timeout 30m -run Large -v ./lab/sim
	WEFT_SOAK=1 go test -count=1 -timeout 30m -tags engine -run TestKill ./ledger/bft
	WEFT_SOAK=1 go test -count=1 -timeout 90m -tags engine -run TestMonth -v ./ledger/bft
	WEFT_SOAK=1 go test -count=1 -timeout 30m -run 'Meters|Gateway' ./lab/netns
	@i=0; while go test -count=1 -shuffle=on ./... >soak.log 2>&1; do i=$$((i+1)); echo "round $$i passed"; done; cat soak.log; exit 1

# What is generated and committed.
gen:
	go test ./api -run TestOpenAPI -update

# Programs to hand out, with their sizes.
DIST := linux/amd64/full linux/arm64/full linux/arm64/router linux/arm/router linux/mipsle/router darwin/arm64/full windows/amd64/full
dist:
	@mkdir -p dist
	@for t in $(DIST); do \
		os=$${t%%/*}; rest=$${t#*/}; arch=$${rest%/*}; profile=$${rest#*/}; \
		ext=; [ $$os = windows ] && ext=.exe; \
		tags=$$(sed 's/#.*//' pack/profiles/$$profile | xargs | tr ' ' ','); \
		out=dist/weft-$(VERSION)-$$os-$$arch-$$profile$$ext; \
		GOOS=$$os GOARCH=$$arch GOARM=7 GOMIPS=softfloat $(BUILD) -tags "$$tags" -o $$out ./cmd/weft || exit 1; \
	done
	@pack/deb/build dist/weft-$(VERSION)-linux-amd64-full amd64 '$(VERSION)' dist
	@pack/deb/build dist/weft-$(VERSION)-linux-arm64-full arm64 '$(VERSION)' dist
	@ls -l dist | awk 'NR > 1 { printf "%6.1f MB  %s\n", $$5/1e6, $$NF }'

clean:
	rm -rf bin dist
