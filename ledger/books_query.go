package ledger

import (
	"encoding/binary"

	"weft/ledger/tx"
)

// What follows reads the committed state and changes nothing.

// Funds returns all funds in the order of their numbers.
func (m *Machine) Funds() []Fund { return list[Fund](m.base, key(kindFund, uint8(fundByID))) }

// Sheet returns what the community has, owes and owns. It reads all accounts.
func (m *Machine) Sheet() Sheet { return m.view(Header{}).sheet() }

// Entry returns an entry of the treasury that is still kept.
func (m *Machine) Entry(id uint64) (Entry, bool) {
	e, err := m.view(Header{}).entryByID(id)
	return e, err == nil
}

// Entries returns the entries that are kept, oldest first.
func (m *Machine) Entries() []Entry { return list[Entry](m.base, key(kindEntry, uint8(entryByID))) }

// Waiting returns the entries that wait for a second signature, and payouts that wait for the treasurer.
func (m *Machine) Waiting() (l []Entry) {
	for _, e := range m.Entries() {
		if e.State == EntryWaits {
			l = append(l, e)
		}
	}
	return l
}

// MayCountersign reports whether a member may be the second person for an entry.
func (m *Machine) MayCountersign(e Entry, member uint64, now int64) bool {
	_, payout := e.Body.(*tx.Payout)
	return e.State == EntryWaits && !payout && now < e.Until && m.view(Header{Time: now}).mayCountersign(e.By, member)
}

// Budgets returns all budgets, oldest first.
func (m *Machine) Budgets() []Budget { return list[Budget](m.base, key(kindFund, uint8(fundBudget))) }

// Lines returns the tariff: the membership fee first, which is line 0, then the voted lines, those that have ended too.
func (m *Machine) Lines() []Line {
	fee, _ := m.view(Header{}).line(0)
	return append([]Line{fee}, list[Line](m.base, key(kindFund, uint8(fundLine)))...)
}

// Period returns a fiscal period. They are numbered from 1.
func (m *Machine) Period(id uint64) (Period, bool) {
	p := m.view(Header{}).period(id)
	return p, p.ID != 0
}

// Periods returns all fiscal periods, oldest first; the last one is open.
func (m *Machine) Periods() []Period { return list[Period](m.base, []byte{kindPeriod}) }

// Patron returns a member's business in a fiscal period.
func (m *Machine) Patron(period, member uint64) (p Patron) {
	load(m.base, patronKey(period, member), &p)
	return p
}

// Allotment returns what a member got of a fiscal period's surplus.
func (m *Machine) Allotment(period, member uint64) (a Allotment, ok bool) {
	ok = load(m.base, allotKey(period, member), &a)
	return a, ok
}

// Allotments returns those of all members in the order of their numbers.
func (m *Machine) Allotments(period uint64) []Allotment {
	return list[Allotment](m.base, key(kindResult, uint8(resultAllot), period))
}

// Capital returns a member's capital by year, oldest first.
func (m *Machine) Capital(member uint64) []Vintage { return m.view(Header{}).vintages(member) }

// Shares returns what a member holds.
func (m *Machine) Shares(member uint64) (h Holding) {
	load(m.base, sharesKey(member), &h)
	return h
}

// Due returns what waits for a former member.
func (m *Machine) Due(member uint64) (d Due) {
	load(m.base, dueKey(member), &d)
	return d
}

// Owing is what a member could not pay yet.
type Owing struct {
	Line   uint64
	Amount int64
}

// Arrears returns what a member could not pay yet, by line of the tariff.
func (m *Machine) Arrears(member uint64) (l []Owing) {
	prefix := key(kindCapital, uint8(capitalArrears), member)
	m.base.Scan(prefix, func(k, v []byte) bool {
		var s sum
		mustDecode(v, &s)
		l = append(l, Owing{binary.BigEndian.Uint64(k[len(prefix):]), int64(s)})
		return true
	})
	return l
}

// Busy reports whether a job runs that takes several blocks: fees, refunds, or capital that is paid back.
func (m *Machine) Busy() bool { return m.view(Header{}).idle() != nil }
