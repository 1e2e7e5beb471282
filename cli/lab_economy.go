//go:build linux && !router

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"weft/lab/economy"
)

type labEconomyCmd struct {
	Homes int    `default:"200" help:"Homes of the neighbourhood; gateways come on top."`
	Days  int    `default:"30" help:"How long it runs, in virtual time."`
	Seed  uint64 `default:"1" help:"The same seed gives the same run."`
	Out   string `default:"weft-economy.html" help:"File for the page with the chart."`
	Short bool   `help:"A small neighbourhood for two days, whatever --homes and --days say: what CI runs."`
}

func (c *labEconomyCmd) Run(e *env) error {
	o := economy.Options{Homes: c.Homes, Days: c.Days, Seed: c.Seed}
	if c.Short {
		o = economy.Short()
		o.Seed = c.Seed
	}
	if err := o.Check(); err != nil {
		return usageError{err}
	}
	page, err := os.Create(c.Out) // before the work: a wrong path shows at once
	if err != nil {
		return fmt.Errorf("make the page: %w; choose another file with --out", err)
	}
	defer page.Close() // nothing is lost when it fails after an error below
	told := time.Now()
	o.Progress = func(p economy.Progress) {
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			e.tell("day %d of %d: %.1f GB carried, %d vouchers", p.Hour/24+1, p.Hours/24, float64(p.Bytes)/1e9, p.Vouchers)
		}
	}
	r, err := economy.Run(e.ctx, o)
	if err != nil {
		return fmt.Errorf("simulate the economy: %w", err)
	}
	if err := r.WriteHTML(page); err != nil {
		return err
	}
	if err := page.Close(); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	path, err := filepath.Abs(c.Out)
	if err != nil {
		path = c.Out
	}
	if e.json {
		err = e.printJSON(r)
		e.tell("The page is %s", path)
	} else if _, err = r.WriteTo(e.out); err == nil {
		e.say("\nThe page is %s", path)
	}
	if err == nil && r.Err() != nil {
		err = errFailed
	}
	return err
}
