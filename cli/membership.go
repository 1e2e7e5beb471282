package cli

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"weft/api"
	"weft/ident"
	"weft/ledger"
	"weft/ledger/tx"
)

// A member's name and keys, and what nodes agree to.

// Words are what one node signs and another sends: a prefix that says what it is, then base64 of its parts.
const (
	rekeyPrefix  = "weft-rekey:"
	actPrefix    = "weft-act:"
	nodePrefix   = "weft-node:"
	revokePrefix = "weft-revoke:"
)

// word is a signature of a node's: member's number 8 | the node's key 32 | signature 64.
type word struct {
	Member uint64
	Key    ident.PublicKey
	Sig    ident.Signature
}

func (w word) text(prefix string) string {
	b := binary.BigEndian.AppendUint64(nil, w.Member)
	return prefix + base64.RawURLEncoding.EncodeToString(append(append(b, w.Key[:]...), w.Sig[:]...))
}

func parseWord(prefix, from, s string) (w word, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), prefix)
	b, err := base64.RawURLEncoding.DecodeString(text)
	if ok && (err != nil || len(b) != 8+32+64) {
		return w, usageError{fmt.Errorf("the word is cut short or damaged; ask for it again: %s prints it", from)}
	}
	if !ok {
		return w, usageError{fmt.Errorf("that is no such word: it begins with %s, and %s prints it", prefix, from)}
	}
	return word{binary.BigEndian.Uint64(b), ident.PublicKey(b[8:40]), ident.Signature(b[40:])}, nil
}

// agree has the node sign, and returns the word.
func (e *env) agree(to string, member uint64) (word, error) {
	a, err := e.node().Agree(e.ctx, api.CoopAgree{To: to, Member: member})
	if err != nil {
		return word{}, err
	}
	if len(a.Word) != 64 {
		return word{}, fmt.Errorf("the node's signature has %d bytes", len(a.Word))
	}
	return word{a.Member, a.Key, ident.Signature(a.Word)}, nil
}

// printWord prints a word alone, so that a pipe can take it, and what to do with it beside.
func (e *env) printWord(w word, prefix, format string, args ...any) error {
	text := w.text(prefix)
	if e.json {
		return e.printJSON(map[string]any{"word": text, "member": w.Member, "key": w.Key})
	}
	e.say("%s", text)
	e.tell(format, args...)
	return nil
}

// memberOf finds a member.
func (e *env) memberOf(text string) (mb ledger.Member, err error) {
	err = e.books(func(m *ledger.Machine, _ time.Time) (err error) {
		mb, err = findMember(m, text)
		return err
	})
	return mb, err
}

// nodeKey finds a node by its key, or by name, id or address among those that this node knows.
func (e *env) nodeKey(text string) (ident.PublicKey, error) {
	if k, err := ident.ParsePublicKey(text); err == nil {
		return k, nil
	}
	all, err := e.node().LSDB(e.ctx)
	if err != nil {
		return ident.PublicKey{}, err
	}
	var found []ident.PublicKey
	for _, n := range all {
		if n.ID == text || n.Address.String() == text || n.Name != "" && strings.EqualFold(n.Name, text) {
			found = append(found, n.Key)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return ident.PublicKey{}, api.Errorf(api.CodeTargetUnknown, "no node %q is known here", text).WithHint("give its key, which weft id shows there")
	}
	return ident.PublicKey{}, api.Errorf(api.CodeTargetAmbiguous, "%d nodes are called %q", len(found), clean(text)).WithHint("give the key of the one that is meant, which weft id shows there")
}

type coopRenameCmd struct {
	Name string `arg:"" help:"Your name from now on."`
}

func (c *coopRenameCmd) Run(e *env) error {
	return e.did(&tx.Rename{To: c.Name}, "You are called %s in the register now.", clean(c.Name))
}

type coopRekeyCmd struct {
	Ask   rekeyAskCmd   `cmd:"" default:"withargs" help:"On the new node: ask for the membership."`
	Vouch rekeyVouchCmd `cmd:"" help:"Vouch that a member has lost the key, and that this word is theirs. Speak with them first, face to face."`
	Undo  rekeyUndoCmd  `cmd:"" help:"Take that back."`
	Veto  rekeyVetoCmd  `cmd:"" help:"With the old key: object to every new one."`
	List  rekeyListCmd  `cmd:"" help:"Show the new keys that wait."`
}

type rekeyAskCmd struct {
	Member string `arg:"" help:"Whose membership: number or name."`
}

func (c *rekeyAskCmd) Run(e *env) error {
	var mb ledger.Member
	var p ledger.Params
	var able string
	if err := e.books(func(m *ledger.Machine, now time.Time) (err error) {
		p = m.Params()
		mb, err = findMember(m, c.Member)
		able = whoVouches(m, now, mb.ID)
		return err
	}); err != nil {
		return err
	}
	w, err := e.agree("rekey", mb.ID)
	if err != nil {
		return err
	}
	return e.printWord(w, rekeyPrefix, "Give it to members who know you. When %d of them have vouched (weft coop rekey vouch WORD), this node's key has the membership of %s after %s, unless the old key objects. Who may vouch now: %s.",
		p.RekeyVouches, clean(mb.Name), span(p.RekeyDelay), clean(able))
}

func parseRekey(text string) (*tx.Rekey, error) {
	w, err := parseWord(rekeyPrefix, "weft coop rekey MEMBER on the new node", text)
	return &tx.Rekey{Member: w.Member, New: w.Key, Word: w.Sig}, err
}

type rekeyVouchCmd struct {
	Word string `arg:"" help:"What weft coop rekey has printed on the new node."`
}

func (c *rekeyVouchCmd) Run(e *env) error {
	b, err := parseRekey(c.Word)
	if err != nil {
		return err
	}
	mb, err := e.memberOf(fmt.Sprint(b.Member))
	if err != nil {
		return err
	}
	r, err := e.send(b)
	if err != nil {
		return err
	}
	if e.json {
		return e.printResult(r)
	}
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		for _, x := range m.Rekeyings() {
			if x.Member == b.Member && x.New == b.New {
				if x.Due != 0 {
					e.say("You vouch for the new key of %s, member %d. It has the membership from %s on, unless the old key objects.", clean(mb.Name), mb.ID, time.Unix(x.Due, 0).Local().Format("2006-01-02 15:04"))
				} else {
					e.say("You vouch for the new key of %s, member %d: %d of %d.", clean(mb.Name), mb.ID, len(x.Vouches), m.Params().RekeyVouches)
				}
			}
		}
		return nil
	})
}

type rekeyUndoCmd struct {
	Member string `arg:"" help:"Whose new key you vouch for no more."`
}

func (c *rekeyUndoCmd) Run(e *env) error {
	mb, err := e.memberOf(c.Member)
	if err != nil {
		return err
	}
	return e.did(&tx.Unrekey{Member: mb.ID}, "You vouch for no new key of %s any more.", clean(mb.Name))
}

type rekeyVetoCmd struct{}

func (c *rekeyVetoCmd) Run(e *env) error {
	return e.did(&tx.Veto{}, "Every new key that waited for your membership is refused, and for 30 days only a vote can give it one (weft coop propose --rekey).")
}

type rekeyListCmd struct{}

func (c *rekeyListCmd) Run(e *env) error {
	return e.books(func(m *ledger.Machine, _ time.Time) error {
		l := m.Rekeyings()
		if e.json {
			type rekeying struct {
				Member  uint64          `json:"member"`
				Key     ident.PublicKey `json:"key"` // the new one
				Since   int64           `json:"since"`
				Vouches []uint64        `json:"vouches"` // members
				Due     int64           `json:"due"`     // then it takes effect; 0: more vouches are needed
			}
			out := []rekeying{}
			for _, r := range l {
				out = append(out, rekeying{r.Member, r.New, r.Since, append([]uint64{}, r.Vouches...), r.Due})
			}
			return e.printJSON(out)
		}
		if len(l) == 0 {
			e.say("No member waits for a new key.")
			return nil
		}
		t := columns(">MEMBER", "NAME", ">VOUCHES", "FROM", "NEW KEY")
		for _, r := range l {
			mb, _ := m.Member(r.Member)
			from := "more vouches"
			if r.Due != 0 {
				from = time.Unix(r.Due, 0).Local().Format("2006-01-02 15:04")
			}
			t.row(r.Member, mb.Name, len(r.Vouches), from, r.New)
		}
		t.print(e.out)
		return nil
	})
}

type coopAgreeCmd struct {
	To     string `arg:"" enum:"act,register,revoke" help:"act: this node's key may propose and vote for a household or organisation. register: this node is a member's. revoke: any member may revoke this node's key; keep that word for the day on which the node is stolen."`
	Member string `arg:"" optional:"" help:"Whose: number, name or key; not for revoke."`
}

func (c *coopAgreeCmd) Run(e *env) error {
	var id uint64
	switch {
	case c.To == "revoke" && c.Member != "":
		return usageError{fmt.Errorf("a word to revoke is for any member: name none")}
	case c.To != "revoke" && c.Member == "":
		return usageError{fmt.Errorf("say for which member: weft coop agree %s MEMBER", c.To)}
	case c.To != "revoke":
		mb, err := e.memberOf(c.Member)
		if err != nil {
			return err
		}
		id = mb.ID
	}
	w, err := e.agree(c.To, id)
	if err != nil {
		return err
	}
	switch c.To {
	case "act":
		return e.printWord(w, actPrefix, "Who has the key of member %d runs: weft coop act WORD", id)
	case "register":
		return e.printWord(w, nodePrefix, "Member %d runs: weft coop node register WORD", id)
	}
	return e.printWord(w, revokePrefix, "Keep it away from this node. Any member revokes the key with: weft coop node revoke WORD")
}

type coopActCmd struct {
	Words []string `arg:"" optional:"" help:"What weft coop agree act MEMBER has printed on each of their nodes: these keys, and no others."`
	None  bool     `help:"No other key any more."`
}

func (c *coopActCmd) Run(e *env) error {
	body := &tx.Delegates{}
	if (len(c.Words) == 0) != c.None {
		return usageError{fmt.Errorf("give the words of all keys that may act for you, or --none")}
	}
	for _, text := range c.Words {
		w, err := parseWord(actPrefix, "weft coop agree act MEMBER", text)
		if err != nil {
			return err
		}
		body.Keys = append(body.Keys, tx.DelegateKey{Key: w.Key, Word: w.Sig})
	}
	if c.None {
		return e.did(body, "Your own key alone acts for you.")
	}
	return e.did(body, "Besides your own %s may propose and vote for you.", count(len(body.Keys), "key"))
}
