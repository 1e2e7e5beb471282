//go:build engine

package bft

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"weft/ledger/tx"
)

// Rules that this program does not know stop it before the first block that they govern, with a word for people; nothing is lost.
func TestUnknownRulesStop(t *testing.T) {
	w := newNetwork(t, 1, 1, 2, 0, nil)
	p := w.peers[0]
	w.start()
	from := p.status().Height
	r := p.final(signed(t, 0, 1, &tx.Propose{Title: "rules of tomorrow", Action: &tx.ActUpgrade{Height: from + 60, Version: rulesVersion + 1}}))
	id := binary.BigEndian.Uint64(r.Data)
	nonce := uint64(2)
	for who, n := range map[int]uint64{0: nonce, 1: 1} {
		eventually(t, 20*time.Second, "the vote", func() error {
			res, err := p.client.Finalise(context.Background(), signed(t, who, n, &tx.Vote{Proposal: id, Choice: tx.Yes}))
			if err == nil && res.Code != 0 {
				return errText(res.Text)
			}
			return err
		})
	}
	for end := time.Now().Add(60 * time.Second); ; {
		nonce++
		select {
		case err := <-p.done:
			if err == nil || !strings.Contains(err.Error(), "update weft") {
				t.Errorf("the engine ended with %v", err)
			}
			p.cancel()
			p.cancel = nil // it is gone
			return
		default:
		}
		if time.Now().After(end) {
			t.Fatal("it goes on under rules that it does not know")
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, _ = p.client.Finalise(ctx, transfer(t, 0, 1, nonce)) // the last one gets into no block
		cancel()
	}
}

type errText string

func (e errText) Error() string { return string(e) }
