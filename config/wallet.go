package config

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Wallet is what the owner lets the node spend.
type Wallet struct {
	Cap Credits `toml:"cap" doc:"Credits in a calendar month (UTC). Above that, and when the account is empty, the free tier remains. weft wallet cap does the same while the node runs." example:"\"10.00\""`
}

// Credits is a sum of money in ncredit, a thousand-millionth of a credit. Its text is credits, such as 12.50.
type Credits int64

// maxCredits is more than there is: a thousand million.
const maxCredits = 1e18

// ParseCredits reads a sum that is not negative.
func ParseCredits(s string) (Credits, error) {
	bad := fmt.Errorf("%q is no sum; written like 12.50", s)
	whole, frac, _ := strings.Cut(strings.TrimSpace(s), ".")
	if len(frac) > 9 || whole == "" && frac == "" || strings.ContainsAny(whole+frac, "+-") {
		return 0, bad
	}
	n, err := strconv.ParseInt(cmp.Or(whole, "0")+frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	if err != nil || n > maxCredits {
		return 0, bad
	}
	return Credits(n), nil
}

// String writes at least two decimals, and as many as it takes.
func (c Credits) String() string {
	sign, u := "", uint64(c)
	if c < 0 {
		sign, u = "-", -u
	}
	frac := fmt.Sprintf("%09d", u%1e9)
	for len(frac) > 2 && frac[len(frac)-1] == '0' {
		frac = frac[:len(frac)-1]
	}
	return fmt.Sprintf("%s%d.%s", sign, u/1e9, frac)
}

// UnmarshalText reads the text of a sum.
func (c *Credits) UnmarshalText(b []byte) (err error) {
	*c, err = ParseCredits(string(b))
	return err
}

// MarshalText writes it.
func (c Credits) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
