package tx

// The kinds, in three groups; each group's bodies are in a file of their own. Numbers are for ever.
//
//	100…  money.go    accounts, tabs, names, registrations
//	200…  govern.go   members, proposals, votes
//	300…  books.go    deposits, budgets, fiscal years, shares

// New returns an empty body of a kind, nil when there is none.
func New(k Kind) Body {
	for _, group := range []func(Kind) Body{newMoney, newGovern, newBooks} {
		if b := group(k); b != nil {
			return b
		}
	}
	return nil
}

// Name is what people call a kind.
func Name(k Kind) string {
	if b := New(k); b != nil {
		if n, ok := b.(interface{ Name() string }); ok {
			return n.Name()
		}
	}
	return "unknown"
}
