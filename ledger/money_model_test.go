package ledger

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/ledger/tx"
)

// The model: what money, tabs and vouchers are, in plain maps, written from docs/spec/ledger.md and not from the code. It knows neither
// queues nor indexes nor encodings.
type model struct {
	now, height int64
	balance     map[int]int64 // by member
	nonce       map[int]uint64
	tabs        map[modelTab]*modelOpen
	epoch       uint32
}

type modelTab struct {
	payer, payee int
	number       uint32
}

type modelOpen struct {
	epoch         uint32
	signer        int
	earmark, paid int64
	expiry        int64
	closing       bool
	until, block  int64
}

const (
	modelLimit   = 100
	modelMembers = 4 // agents 1 to 4; 5 and up are strangers and routers' keys
	modelTabs    = 3 // of a payer
	modelChain   = "gov-1"
)

func (m *model) begin(now, height int64) {
	m.now, m.height = now, height
	for k, t := range m.tabs {
		switch {
		case !t.closing && now >= t.expiry:
			m.close(t)
		case t.closing && now >= t.until && height >= t.block:
			m.settle(k)
		}
	}
}

func (m *model) close(t *modelOpen) {
	t.closing, t.until, t.block = true, m.now+7*86400, m.height+100
}

func (m *model) settle(k modelTab) {
	m.balance[k.payer] += m.tabs[k].earmark - m.tabs[k].paid
	delete(m.tabs, k)
}

func (m *model) spend(who int, n int64) bool {
	if n <= 0 || m.balance[who]-n < -modelLimit {
		return false
	}
	m.balance[who] -= n
	return true
}

func (m *model) livesUntil(t int64) bool { return t > m.now && t <= m.now+30*86400 }

// modelVoucher is a voucher that somebody has made, right or wrong.
type modelVoucher struct {
	raw     [tx.VoucherLen]byte
	tab     modelTab
	epoch   uint32
	amount  int64
	signer  int
	foreign bool // for another chain
}

func (m *model) claim(v modelVoucher) (int64, bool) {
	t := m.tabs[v.tab]
	if t == nil || v.foreign || t.epoch != v.epoch || t.signer != v.signer {
		return 0, false
	}
	n := min(v.amount, t.earmark) - t.paid
	if n <= 0 {
		return 0, false
	}
	t.paid += n
	m.balance[v.tab.payee] += n
	return n, true
}

// modelTx is a transaction with what the model needs to know of it.
type modelTx struct {
	raw    []byte
	from   int
	nonce  uint64
	expiry int64
	wrong  bool                   // never admitted: chain, signature, stranger
	do     func() (bool, []int64) // on the model: whether it works; of claims: what each voucher pays
}

// apply says what becomes of a transaction, and whether it is admitted.
func (m *model) apply(t modelTx) (ok bool, paid []int64) {
	if t.wrong || t.nonce != m.nonce[t.from]+1 || t.expiry <= m.now || t.expiry > m.now+14*86400 {
		return false, nil
	}
	m.nonce[t.from]++
	return t.do()
}

func modelKey(k modelTab) tx.TabID {
	return tx.TabIDOf(tx.ChainOf(modelChain), govKey(k.payer), govKey(k.payee), k.number)
}

// run is the machine, its twin and the model, side by side.
type run struct {
	w        *gov
	twin     *Machine
	twins    *Mem
	m        *model
	vouchers []modelVoucher
	old      []modelTx // sent before
	next     map[int]uint64
}

func newRun(t testing.TB) *run {
	w := newGov(t, modelMembers, "tab.each=3", "tx.each=10000")
	r := &run{w: w, twins: w.store.Clone(), m: &model{balance: map[int]int64{}, nonce: map[int]uint64{}, tabs: map[modelTab]*modelOpen{}, now: govStart}}
	r.twin, _ = New(r.twins)
	return r
}

func (r *run) sign(t *rapid.T, from int, b tx.Body, do func() (bool, []int64)) modelTx {
	nonce := r.next[from] + 1
	x := tx.Tx{Chain: tx.ChainOf(modelChain), Nonce: nonce, Expiry: r.w.now + 3600, Body: b}
	wrong := from > modelMembers
	signer := govAgent(from)
	switch rapid.IntRange(0, 30).Draw(t, "flaw") {
	case 0:
		x.Chain, wrong = tx.ChainOf("gov-2"), true
	case 1:
		x.Expiry = r.w.now
	case 2:
		x.Expiry = r.w.now + 15*86400
	case 3:
		x.Nonce += 1 + uint64(rapid.IntRange(0, 1).Draw(t, "skip"))
	}
	raw, err := x.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 30).Draw(t, "forged") == 0 {
		raw[len(raw)-1-rapid.IntRange(0, len(raw)-61).Draw(t, "at")] ^= 1
		wrong = true
	}
	if !wrong && x.Nonce == nonce && x.Expiry == r.w.now+3600 {
		r.next[from]++
	}
	return modelTx{raw: raw, from: from, nonce: x.Nonce, expiry: x.Expiry, wrong: wrong, do: do}
}

// voucher draws one for a tab that is, was, or never will be; mostly it is good.
func (r *run) voucher(t *rapid.T) modelVoucher {
	if len(r.vouchers) > 0 && rapid.IntRange(0, 3).Draw(t, "again") == 0 {
		return rapid.SampledFrom(r.vouchers).Draw(t, "voucher")
	}
	v := modelVoucher{tab: r.anyTab(t), amount: rapid.Int64Range(0, 120).Draw(t, "amount"), epoch: 1, signer: rapid.IntRange(1, 7).Draw(t, "signer")}
	if o := r.m.tabs[v.tab]; o != nil && rapid.IntRange(0, 4).Draw(t, "wrong") > 0 {
		v.epoch, v.signer = o.epoch, o.signer
	}
	if rapid.IntRange(0, 9).Draw(t, "epoch") == 0 {
		v.epoch = uint32(rapid.IntRange(0, 9).Draw(t, "other epoch"))
	}
	chain := tx.ChainOf(modelChain)
	id := modelKey(v.tab)
	if rapid.IntRange(0, 9).Draw(t, "chain") == 0 {
		chain, v.foreign = tx.ChainOf("gov-2"), true
	}
	s, err := tx.Voucher{Chain: chain, Tab: id, Epoch: v.epoch, Seq: uint64(len(r.vouchers)), Amount: v.amount}.Sign(govAgent(v.signer))
	if err != nil {
		t.Fatal(err)
	}
	v.raw = s.Encode()
	if rapid.IntRange(0, 9).Draw(t, "forged voucher") == 0 { // another amount under the same signature
		v.raw[47] ^= 1
		v.signer = 0
	}
	r.vouchers = append(r.vouchers, v)
	return v
}

func (r *run) anyTab(t *rapid.T) modelTab {
	var open []modelTab
	for k := range r.m.tabs {
		open = append(open, k)
	}
	slices.SortFunc(open, func(a, b modelTab) int {
		return slices.Compare([]int{a.payer, a.payee, int(a.number)}, []int{b.payer, b.payee, int(b.number)})
	})
	if len(open) > 0 && rapid.IntRange(0, 4).Draw(t, "open") > 0 {
		return rapid.SampledFrom(open).Draw(t, "tab")
	}
	return modelTab{rapid.IntRange(1, modelMembers).Draw(t, "payer"), rapid.IntRange(1, modelMembers).Draw(t, "payee"), uint32(rapid.IntRange(0, 1).Draw(t, "number"))}
}

func (r *run) epochOf(t *rapid.T, k modelTab) uint32 {
	if o := r.m.tabs[k]; o != nil && rapid.IntRange(0, 5).Draw(t, "stale") > 0 {
		return o.epoch
	}
	return uint32(rapid.IntRange(0, 9).Draw(t, "epoch"))
}

func (r *run) draw(t *rapid.T) modelTx {
	if len(r.old) > 0 && rapid.IntRange(0, 7).Draw(t, "replay") == 0 {
		return rapid.SampledFrom(r.old).Draw(t, "old")
	}
	m := r.m
	from := rapid.IntRange(1, modelMembers+1).Draw(t, "from")
	amount := rapid.Int64Range(0, 130).Draw(t, "amount")
	expiry := r.w.now + rapid.SampledFrom([]int64{0, 1, 3600, 86400, 20 * 86400, 29 * 86400, 31 * 86400}).Draw(t, "expiry")
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0, 1:
		to := rapid.IntRange(1, modelMembers+1).Draw(t, "to")
		return r.sign(t, from, &tx.Transfer{To: govKey(to), Amount: amount}, func() (bool, []int64) {
			if to > modelMembers || to == from || !m.spend(from, amount) {
				return false, nil
			}
			m.balance[to] += amount
			return true, nil
		})
	case 2, 3:
		k := modelTab{from, rapid.IntRange(1, modelMembers+1).Draw(t, "payee"), uint32(rapid.IntRange(0, 1).Draw(t, "number"))}
		signer := rapid.SampledFrom([]int{from, 6, 7}).Draw(t, "signer")
		b := &tx.TabOpen{Payee: govKey(k.payee), Number: k.number, Earmark: amount, Expiry: expiry}
		if signer != from {
			b.Signer = govKey(signer)
		}
		return r.sign(t, from, b, func() (bool, []int64) {
			n := 0
			for o := range m.tabs {
				if o.payer == from {
					n++
				}
			}
			if n == modelTabs || m.tabs[k] != nil || k.payee == from || k.payee > modelMembers || !m.livesUntil(expiry) || !m.spend(from, amount) {
				return false, nil
			}
			m.epoch++
			m.tabs[k] = &modelOpen{epoch: m.epoch, signer: signer, earmark: amount, expiry: expiry}
			return true, nil
		})
	case 4:
		k := r.anyTab(t)
		epoch := r.epochOf(t, k)
		return r.sign(t, from, &tx.TabTopUp{Tab: modelKey(k), Epoch: epoch, Amount: amount}, func() (bool, []int64) {
			o := m.tabs[k]
			if o == nil || o.epoch != epoch || k.payer != from || o.closing || !m.spend(from, amount) {
				return false, nil
			}
			o.earmark += amount
			return true, nil
		})
	case 5:
		k := r.anyTab(t)
		epoch := r.epochOf(t, k)
		return r.sign(t, from, &tx.TabRenew{Tab: modelKey(k), Epoch: epoch, Expiry: expiry}, func() (bool, []int64) {
			o := m.tabs[k]
			if o == nil || o.epoch != epoch || k.payer != from || o.closing || expiry <= o.expiry || !m.livesUntil(expiry) {
				return false, nil
			}
			o.expiry = expiry
			return true, nil
		})
	case 6, 7, 8:
		var b tx.TabClaim
		var l []modelVoucher
		for range rapid.SampledFrom([]int{0, 1, 1, 2, 3, 6}).Draw(t, "vouchers") {
			v := r.voucher(t)
			l, b.Vouchers = append(l, v), append(b.Vouchers, v.raw)
		}
		return r.sign(t, from, &b, func() (ok bool, paid []int64) {
			for _, v := range l {
				n, good := m.claim(v)
				ok, paid = ok || good, append(paid, n)
			}
			return ok, paid
		})
	default:
		k := r.anyTab(t)
		epoch := r.epochOf(t, k)
		return r.sign(t, from, &tx.TabClose{Tab: modelKey(k), Epoch: epoch}, func() (bool, []int64) {
			o := m.tabs[k]
			switch {
			case o == nil || o.epoch != epoch || from != k.payee && (from != k.payer || o.closing):
				return false, nil
			case from == k.payee:
				m.settle(k)
			default:
				m.close(o)
			}
			return true, nil
		})
	}
}

func (r *run) step(t *rapid.T) {
	now := r.w.now + rapid.SampledFrom([]int64{0, 1, 60, 3600, 86400, 8 * 86400}).Draw(t, "seconds")
	height := r.w.height + rapid.SampledFrom([]int64{1, 1, 50, 101}).Draw(t, "blocks")
	r.w.now, r.w.height = now, height
	r.next = map[int]uint64{}
	for k, n := range r.m.nonce {
		r.next[k] = n
	}
	var l []modelTx
	for range rapid.IntRange(0, 6).Draw(t, "txs") {
		l = append(l, r.draw(t))
	}
	if len(l) > 1 && rapid.IntRange(0, 4).Draw(t, "reorder") == 0 {
		l = rapid.Permutation(l).Draw(t, "order")
	}
	r.old = append(r.old, l...)
	h := Header{Height: height, Time: now}
	var raws [][]byte
	for _, x := range l {
		raws = append(raws, x.raw)
	}
	// Proposals: what Propose lets through is a good block; the whole is one only if nothing had to go.
	before := r.w.store.Clone()
	good := r.w.m.Propose(h, raws, MaxBlockBytes)
	if err := r.twin.CheckBlock(h, good); err != nil {
		t.Fatalf("an honest proposal is refused: %v", err)
	}
	if err := r.twin.CheckBlock(h, raws); (err == nil) != (len(good) == len(raws)) {
		t.Fatalf("%d of %d are good, and the block: %v", len(good), len(raws), err)
	}
	if k, same := before.Equal(r.w.store); !same {
		t.Fatalf("a proposal changed %q", k)
	}

	out := r.w.m.Block(h, raws)
	r.m.begin(now, height)
	for i, x := range l {
		ok, paid := r.m.apply(x)
		if got := out.Results[i]; ok != (got.Code == OK) {
			t.Fatalf("transaction %d of %d: the model says %v, the ledger %+v", i, x.from, ok, got)
		}
		if ok && paid != nil {
			got, err := tx.ParseClaimed(out.Results[i].Data)
			if err != nil || len(got) != len(paid) {
				t.Fatal(got, err)
			}
			for j, p := range got {
				if p.Paid != paid[j] || (p.Code == 0) != (paid[j] > 0) {
					t.Fatalf("voucher %d: the model pays %d, the ledger %+v", j, paid[j], p)
				}
			}
		}
	}
	r.compare(t)
	entries := map[int]int64{}
	for _, p := range out.Postings {
		entries[p.Tx] += p.Amount
	}
	for i, n := range entries {
		if n != 0 {
			t.Fatalf("the entry of transaction %d sums to %d", i, n)
		}
	}
	// The twin dies in the middle of the block and begins again.
	spare := r.twins.Clone()
	dying, _ := New(spare)
	dying.Block(h, raws[:len(raws)/2])
	r.twin, _ = New(r.twins)
	again := r.twin.Block(h, raws)
	for i := range again.Results {
		if again.Results[i].Code != out.Results[i].Code || string(again.Results[i].Data) != string(out.Results[i].Data) {
			t.Fatal("two machines disagree on a result")
		}
	}
	if k, same := r.twins.Equal(r.w.store); !same {
		t.Fatalf("two machines disagree at %q", k)
	}
}

func (r *run) compare(t *rapid.T) {
	for i := 1; i <= modelMembers; i++ {
		a, _ := r.w.m.Account(govKey(i))
		if a.Balance != r.m.balance[i] || a.Nonce != r.m.nonce[i] {
			t.Fatalf("member %d has %d (nonce %d), and by the model %d (%d)", i, a.Balance, a.Nonce, r.m.balance[i], r.m.nonce[i])
		}
	}
	n := 0
	for i := range uint64(modelMembers) {
		pays, _ := r.w.m.Tabs(i + 1)
		n += len(pays)
	}
	if n != len(r.m.tabs) {
		t.Fatalf("there are %d tabs, and by the model %d", n, len(r.m.tabs))
	}
	for k, o := range r.m.tabs {
		got, ok := r.w.m.Tab(modelKey(k))
		if !ok || got.Epoch != o.epoch || got.Earmark != o.earmark || got.Claimed != o.paid || got.Expiry != o.expiry || got.Closing() != o.closing ||
			got.Until != o.until || got.UntilBlock != o.block || got.Signer != govKey(o.signer) {
			t.Fatalf("tab %v is %+v, and by the model %+v", k, got, *o)
		}
		_, earns := r.w.m.Tabs(uint64(k.payee))
		if !slices.ContainsFunc(earns, func(t tx.Tab) bool { return t.ID == got.ID }) {
			t.Fatalf("the payee does not find tab %v", k)
		}
	}
}

func TestMoneyAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRun(t)
		for range rapid.IntRange(5, 25).Draw(rt, "steps") {
			r.step(rt)
		}
	})
}
