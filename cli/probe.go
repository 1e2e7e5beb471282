package cli

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"weft/api"
)

type pingCmd struct {
	Target   string        `arg:"" help:"Address, key, id or name."`
	Count    int           `short:"c" help:"How many; without it until Ctrl-C."`
	Interval time.Duration `short:"i" default:"1s" help:"Time between two."`
}

func (c *pingCmd) Run(e *env) error {
	if c.Count < 0 || c.Interval < time.Millisecond {
		return usageError{fmt.Errorf("the count must not be negative, the interval at least 1ms")}
	}
	var rtts []float64
	sent := 0
	for r, err := range e.node().Ping(e.ctx, api.PingRequest{Target: c.Target, Count: c.Count, IntervalMs: int(c.Interval.Milliseconds())}) {
		if err != nil {
			return err
		}
		sent++
		if !r.Lost {
			rtts = append(rtts, float64(r.RTTUs)/1000)
		}
		switch {
		case e.json:
			if err := e.printLine(r); err != nil {
				return err
			}
		case r.Lost:
			e.say("%d: lost%s", r.Seq, clean(prefixed(": ", r.Error)))
		default:
			e.say("%d: %d bytes from %s (%s) in %.2f ms", r.Seq, r.Bytes, who(r.Name, "node"), r.Address, float64(r.RTTUs)/1000)
		}
	}
	if !e.json && sent > 0 {
		e.say("%d sent, %d answered, %.0f %% lost", sent, len(rtts), 100*float64(sent-len(rtts))/float64(sent))
		if len(rtts) > 0 {
			slices.Sort(rtts)
			e.say("fastest %.2f ms, median %.2f ms, slowest %.2f ms", rtts[0], rtts[len(rtts)/2], rtts[len(rtts)-1])
		}
	}
	if len(rtts) == 0 {
		if !e.json && sent > 0 {
			e.tell("hint: is there a path? see: weft trace %s", c.Target)
		}
		return errFailed
	}
	return nil
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

type traceCmd struct {
	Target string `arg:"" help:"Address, key, id or name."`
}

func (c *traceCmd) Run(e *env) error {
	ctx, cancel := context.WithTimeout(e.ctx, 30*time.Second)
	defer cancel()
	hops, err := e.node().Trace(ctx, c.Target)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(hops)
	}
	t := columns(">HOP", "NAME", "ADDRESS", ">COST", ">PRICE/MiB", ">ROUND TRIP")
	var price uint64
	for i, h := range hops {
		relay := i > 0 && i < len(hops)-1
		shown := ""
		if relay {
			shown = fmt.Sprint(h.Price)
			if price > math.MaxUint64-h.Price {
				price = math.MaxUint64
			} else {
				price += h.Price
			}
		}
		t.row(i, h.Name, h.Address, micros(h.CostUs), shown, micros(h.RTTUs))
	}
	t.print(e.out)
	for _, h := range hops {
		if h.Offer != "" {
			e.say("%s shares the internet: %s", who(h.Name, h.ID), clean(h.Offer))
		}
	}
	if n := len(hops); n > 1 {
		e.say("%s, cost %s, price of the way %d ncredit per MiB", count(n-1, "hop"), micros(hops[n-1].CostUs), price)
	}
	return nil
}
