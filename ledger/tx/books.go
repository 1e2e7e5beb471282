package tx

func newBooks(Kind) Body { return nil }
