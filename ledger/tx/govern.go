package tx

func newGovern(Kind) Body { return nil }
