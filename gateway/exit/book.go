//go:build !router

package exit

import "net/netip"

// What a flow costs at least: buffers of floorSize each way in the stack and as much in hand, and floorRest for endpoints,
// goroutines and entries in tables.
const (
	floorSize = 16 << 10
	floorRest = 16 << 10
	floorCost = 4*floorSize + floorRest
	startSize = 64 << 10
	fullSize  = 1 << 20
	inHand    = 64 << 10 // bytes that a copying goroutine holds at most
)

// cost returns the bytes that a TCP connection with buffers of size may take: one each way in the stack, one each way in hand.
func cost(size int64) int64 { return 2*size + 2*min(size, inHand) + floorRest }

// book keeps account of slots and memory. Its user locks.
type book struct {
	flows, perClient int   // slots
	free, perOne     int64 // bytes to lend, and how much of them one client may have
	held             int
	accounts         map[netip.Prefix]*account
}

// account is what one client holds.
type account struct {
	client netip.Prefix
	held   int   // slots
	lent   int64 // bytes
	pings  int
}

func newBook(flows, perClient int, memory int64) book {
	free := memory - int64(flows)*floorCost
	return book{flows: flows, perClient: perClient, free: free, perOne: free / 4, accounts: map[netip.Prefix]*account{}}
}

// clientOf is what counts as one client: whoever has a /64 has 2^64 addresses.
func clientOf(a netip.Addr) netip.Prefix {
	p, _ := a.Prefix(min(a.BitLen(), 64)) // cannot fail: no zone
	return p
}

func (b *book) account(client netip.Addr) *account {
	p := clientOf(client)
	a := b.accounts[p]
	if a == nil {
		a = &account{client: p}
		b.accounts[p] = a
	}
	return a
}

// settle forgets an account with nothing in it.
func (b *book) settle(a *account) {
	if a.held == 0 && a.pings == 0 {
		delete(b.accounts, a.client)
	}
}

// open takes a slot; nil if there is none.
func (b *book) open(client netip.Addr) *account {
	a := b.account(client)
	if b.held >= b.flows || a.held >= b.perClient {
		b.settle(a)
		return nil
	}
	b.held++
	a.held++
	return a
}

// close gives a slot back.
func (b *book) close(a *account) {
	b.held--
	a.held--
	b.settle(a)
}

// resize lends or takes back what buffers of another size cost; false if that cannot be lent.
func (b *book) resize(a *account, from, to int64) bool {
	n := cost(to) - cost(from)
	if n > 0 && (n > b.free || a.lent+n > b.perOne) {
		return false
	}
	b.free -= n
	a.lent += n
	return true
}
