package tx

import "fmt"

func newGovern(Kind) Body { return nil }

// Decision is what a proposal decides. Each has its own majority, and members may delegate their vote by it.
type Decision uint8

// The decisions. Numbers and names are for ever.
const (
	DecideText       Decision = 1
	DecideBylaws     Decision = 2
	DecideTariff     Decision = 3
	DecideBudget     Decision = 4
	DecideValidators Decision = 5
	DecideBlock      Decision = 6
	DecideAdmission  Decision = 7
	DecideStanding   Decision = 8
	DecideCredit     Decision = 9
	DecideElection   Decision = 10
	DecideSurplus    Decision = 11
	DecideUpgrade    Decision = 12
	DecideRekey      Decision = 13

	Decisions = 14 // one more than the last
)

var decisionNames = [Decisions]string{1: "text", "bylaws", "tariff", "budget", "validators", "block", "admission", "standing", "credit", "election", "surplus", "upgrade", "rekey"}

func (d Decision) String() string {
	if d == 0 || d >= Decisions {
		return fmt.Sprintf("decision %d", uint8(d))
	}
	return decisionNames[d]
}

// Form is what kind of member one is. Each has one vote.
type Form uint8

// The forms.
const (
	Person       Form = 0
	Household    Form = 1
	Organisation Form = 2
)

func (f Form) String() string {
	if f > Organisation {
		return fmt.Sprintf("form %d", uint8(f))
	}
	return [...]string{"person", "household", "organisation"}[f]
}

// Setting is a parameter's value by name (ledger.Params).
type Setting struct{ Name, Value string }

// Fields implements Record.
func (s *Setting) Fields(c *Coder) {
	c.Text(&s.Name, 40)
	c.Text(&s.Value, 40)
}
