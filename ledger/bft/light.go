//go:build engine

package bft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/cometbft/cometbft/light"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/p2p/conn"
	cmtstate "github.com/cometbft/cometbft/proto/tendermint/state"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"
	gogo "github.com/cosmos/gogoproto/types"
)

// Comet's state sync wants light blocks over its RPC, which nobody here serves. So engines ask their peers for them on a channel of
// their own: 0 | height 8 asks, 1 | height 8 | LightBlock answers, empty when there is none.
//
// On the same channel each tells each every beatPeriod that it lives: 2 | height 8. Comet's own pings come every 60 s, wait 45 s for an
// answer, and cannot be set: where packets vanish, as in a mesh that is torn, nobody would know for so long.
const (
	lightChannel  = 0x71
	beatPeriod    = 4 * time.Second
	silence       = 10 * time.Second // who was not heard for so long is not counted as reachable
	patience      = 20 * time.Second // and loses its connection, for a new one
	overdue       = 12 * time.Second // a block, beyond when it should have come
	maxLightBlock = 256 << 10
	lightTimeout  = 3 * time.Second
)

// lightBlock returns header, commit and validators of a height, 0: the newest; nil when they are not kept.
func (e *engine) lightBlock(h int64) (*types.LightBlock, error) {
	store := e.node.BlockStore()
	if h == 0 {
		h = store.Height()
	}
	meta := store.LoadBlockMeta(h)
	if meta == nil {
		return nil, fmt.Errorf("there is no block %d here: there are %d to %d", h, store.Base(), store.Height())
	}
	commit := store.LoadBlockCommit(h)
	if commit == nil {
		commit = store.LoadSeenCommit(h)
	}
	vals, err := e.states.LoadValidators(h)
	if commit == nil || err != nil {
		return nil, fmt.Errorf("block %d is not signed yet, or its validators are no longer known: %w", h, err)
	}
	return &types.LightBlock{SignedHeader: &types.SignedHeader{Header: &meta.Header, Commit: commit}, ValidatorSet: vals}, nil
}

func encodeLight(lb *types.LightBlock) ([]byte, error) {
	p, err := lb.ToProto()
	if err != nil {
		return nil, err
	}
	return p.Marshal()
}

func decodeLight(b []byte) (*types.LightBlock, error) {
	var p cmtproto.LightBlock
	if err := p.Unmarshal(b); err != nil {
		return nil, err
	}
	return types.LightBlockFromProto(&p)
}

// lightReactor serves light blocks to peers and asks them.
type lightReactor struct {
	p2p.BaseReactor
	e *engine

	mu     sync.Mutex
	asked  map[question]chan []byte
	beats  map[p2p.ID]bool // peers that have told that they live
	closed bool
}

type question struct {
	peer   p2p.ID
	height int64
}

func newLightReactor(e *engine) *lightReactor {
	r := &lightReactor{e: e, asked: map[question]chan []byte{}, beats: map[p2p.ID]bool{}}
	r.BaseReactor = *p2p.NewBaseReactor("Light", r)
	return r
}

func (r *lightReactor) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// GetChannels implements p2p.Reactor.
func (r *lightReactor) GetChannels() []*conn.ChannelDescriptor {
	return []*conn.ChannelDescriptor{{ID: lightChannel, Priority: 1, SendQueueCapacity: 4, RecvMessageCapacity: maxLightBlock, MessageType: &gogo.BytesValue{}}}
}

// AddPeer implements p2p.Reactor.
func (r *lightReactor) AddPeer(p2p.Peer) {}

// RemovePeer implements p2p.Reactor.
func (r *lightReactor) RemovePeer(p p2p.Peer, _ any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.beats, p.ID())
}

// InitPeer implements p2p.Reactor.
func (r *lightReactor) InitPeer(p p2p.Peer) p2p.Peer { return p }

// Receive implements p2p.Reactor. A peer's questions wait in its own connection: it can slow down itself alone.
func (r *lightReactor) Receive(m p2p.Envelope) {
	v, ok := m.Message.(*gogo.BytesValue)
	if !ok || len(v.Value) < 9 {
		return
	}
	height := int64(binary.BigEndian.Uint64(v.Value[1:]))
	switch v.Value[0] {
	case 0:
		r.mu.Lock()
		closed := r.closed
		r.mu.Unlock()
		if closed || height < 1 {
			return
		}
		out := append([]byte{1}, v.Value[1:9]...)
		if lb, err := r.e.lightBlock(height); err == nil {
			if b, err := encodeLight(lb); err == nil {
				out = append(out, b...)
			}
		}
		m.Src.TrySend(p2p.Envelope{ChannelID: lightChannel, Message: &gogo.BytesValue{Value: out}})
	case 1:
		r.mu.Lock()
		c := r.asked[question{m.Src.ID(), height}]
		r.mu.Unlock()
		if c != nil {
			select {
			case c <- v.Value[9:]:
			default:
			}
		}
	case 2:
		r.mu.Lock()
		r.beats[m.Src.ID()] = true
		r.mu.Unlock()
	}
}

// beat tells all peers that this engine lives, every beatPeriod, and lets go of those of whom nothing came for too long: the
// dialler makes a new connection as soon as there is a way, where the old one would wait for TCP to try again.
func (e *engine) beat(ctx context.Context) {
	t := time.NewTicker(beatPeriod)
	defer t.Stop()
	for {
		sw := e.node.Switch()
		e.tidy(time.Now())
		e.listen(sw)
		b := binary.BigEndian.AppendUint64([]byte{2}, uint64(e.node.BlockStore().Height()))
		for _, p := range peersOf(sw.Peers()) {
			e.light.mu.Lock()
			limit := patience
			if !e.light.beats[p.ID()] { // of two that dialled each other at once, each may have kept the connection that the other has dropped
				limit = silence
			}
			e.light.mu.Unlock()
			if silent := p.Status().RecvMonitor.Idle; silent > limit {
				e.log.Info("nothing comes from a peer: connecting anew", "peer", p.ID(), "silent", silent.Round(time.Second))
				sw.StopPeerGracefully(p)
				continue
			}
			p.TrySend(p2p.Envelope{ChannelID: lightChannel, Message: &gogo.BytesValue{Value: b}})
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// listen notes when something came from each validator.
func (e *engine) listen(sw interface{ Peers() p2p.IPeerSet }) map[p2p.ID]time.Time {
	now, is := time.Now(), map[p2p.ID]bool{}
	for _, v := range e.app.validators() {
		is[idOf(v.Key)] = v.Power > 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range peersOf(sw.Peers()) {
		if id := p.ID(); is[id] {
			e.heard[id] = now.Add(-p.Status().RecvMonitor.Idle)
		}
	}
	maps.DeleteFunc(e.heard, func(id p2p.ID, _ time.Time) bool { return !is[id] })
	return maps.Clone(e.heard)
}

// ask asks all peers for a light block. All that answer must agree: where two do not, one of them is on a fork, and a newcomer
// cannot tell which.
func (r *lightReactor) ask(ctx context.Context, height int64) (*types.LightBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, lightTimeout)
	defer cancel()
	peers := peersOf(r.e.node.Switch().Peers())
	answers := make(chan *types.LightBlock, len(peers))
	for _, p := range peers {
		q := question{p.ID(), height}
		c := make(chan []byte, 1)
		r.mu.Lock()
		r.asked[q] = c
		r.mu.Unlock()
		p.TrySend(p2p.Envelope{ChannelID: lightChannel, Message: &gogo.BytesValue{Value: binary.BigEndian.AppendUint64([]byte{0}, uint64(height))}})
		go func() { // ends with ctx
			var lb *types.LightBlock
			select {
			case b := <-c:
				if x, err := decodeLight(b); err == nil && x.ValidateBasic(r.e.genesis.Chain) == nil && x.Height == height {
					lb = x
				}
			case <-ctx.Done():
			}
			r.mu.Lock()
			delete(r.asked, q)
			r.mu.Unlock()
			answers <- lb
		}()
	}
	var found *types.LightBlock
	for range peers {
		switch lb := <-answers; {
		case lb == nil:
		case found == nil:
			found = lb
		case !bytes.Equal(found.Hash(), lb.Hash()):
			return nil, fmt.Errorf("peers tell of different blocks at height %d: somebody lies; ask who runs the community's validators", height)
		}
	}
	if found == nil {
		return nil, fmt.Errorf("none of %d peers has block %d", len(peers), height)
	}
	return found, nil
}

// provenance tells Comet's state sync which states belong to the chain: it verifies headers from a trusted block on, and back.
type provenance struct {
	e     *engine
	trust Trust
	doc   *types.GenesisDoc

	mu    sync.Mutex
	known map[int64]*types.LightBlock
}

const clockDrift = time.Minute

// verified returns a light block that follows from the trusted one. It is called with mu held.
func (p *provenance) verified(ctx context.Context, h int64) (*types.LightBlock, error) {
	if lb := p.known[h]; lb != nil {
		return lb, nil
	}
	root := p.known[p.trust.Height]
	if root == nil {
		lb, err := p.e.light.ask(ctx, p.trust.Height)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(lb.Hash(), p.trust.Hash[:]) {
			return nil, fmt.Errorf("block %d is not the one that was said to be trusted", p.trust.Height)
		}
		if light.HeaderExpired(lb.SignedHeader, EvidenceWindow, time.Now()) {
			return nil, fmt.Errorf("trusted block %d is older than 14 days: get a newer one from somebody you trust", p.trust.Height)
		}
		root, p.known[lb.Height] = lb, lb
	}
	var near *types.LightBlock // the nearest that is known
	for _, lb := range p.known {
		if near == nil || abs(lb.Height-h) < abs(near.Height-h) {
			near = lb
		}
	}
	for near.Height > h { // back: each header names the one before
		lb, err := p.e.light.ask(ctx, near.Height-1)
		if err != nil {
			return nil, err
		}
		if err := light.VerifyBackwards(lb.Header, near.Header); err != nil {
			return nil, err
		}
		near, p.known[lb.Height] = lb, lb
	}
	for near.Height < h {
		next := h
		for {
			lb, err := p.e.light.ask(ctx, next)
			if err != nil {
				return nil, err
			}
			err = light.Verify(near.SignedHeader, near.ValidatorSet, lb.SignedHeader, lb.ValidatorSet, EvidenceWindow, time.Now(), clockDrift, light.DefaultTrustLevel)
			var far light.ErrNewValSetCantBeTrusted
			if errors.As(err, &far) && next > near.Height+1 {
				next = near.Height + (next-near.Height)/2 // too many validators are new: a step in between
				continue
			}
			if err != nil {
				return nil, err
			}
			near, p.known[lb.Height] = lb, lb
			break
		}
	}
	return near, nil
}

func abs(n int64) int64 { return max(n, -n) }

// AppHash implements statesync.StateProvider. Two headers must follow a state, or it cannot be begun from.
func (p *provenance) AppHash(ctx context.Context, height uint64) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.verified(ctx, int64(height)+2); err != nil {
		return nil, err
	}
	lb, err := p.verified(ctx, int64(height)+1)
	if err != nil {
		return nil, err
	}
	return lb.AppHash, nil
}

// Commit implements statesync.StateProvider.
func (p *provenance) Commit(ctx context.Context, height uint64) (*types.Commit, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lb, err := p.verified(ctx, int64(height))
	if err != nil {
		return nil, err
	}
	return lb.Commit, nil
}

// State implements statesync.StateProvider. Consensus parameters never change but for the version, which headers carry.
func (p *provenance) State(ctx context.Context, height uint64) (sm.State, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lb [3]*types.LightBlock
	for i := range lb {
		var err error
		if lb[i], err = p.verified(ctx, int64(height)+int64(i)); err != nil {
			return sm.State{}, err
		}
	}
	params := *p.doc.ConsensusParams
	params.Version.App = lb[1].Version.App
	if !bytes.Equal(params.Hash(), lb[1].ConsensusHash) {
		return sm.State{}, errors.New("the chain's parameters are not those of its beginning: update weft")
	}
	return sm.State{
		ChainID: p.doc.ChainID, InitialHeight: 1,
		Version:         cmtstate.Version{Consensus: lb[1].Version, Software: version.TMCoreSemVer},
		LastBlockHeight: lb[0].Height, LastBlockTime: lb[0].Time, LastBlockID: lb[0].Commit.BlockID,
		AppHash: lb[1].AppHash, LastResultsHash: lb[1].LastResultsHash,
		LastValidators: lb[0].ValidatorSet, Validators: lb[1].ValidatorSet, NextValidators: lb[2].ValidatorSet,
		LastHeightValidatorsChanged: lb[2].Height,
		ConsensusParams:             params, LastHeightConsensusParamsChanged: lb[1].Height,
	}, nil
}
