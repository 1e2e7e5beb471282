//go:build engine

package bft

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cosmos/iavl"

	"weft/ledger"
)

// A snapshot is the tree's nodes in the order in which the tree exports them: entering keys anew would give another root. Each is
//
//	height 1 (int8) | version 8 | key length 4 | key | value length 4 | value       the last two for leaves (height 0) alone
//
// cut into chunks of chunkSize without regard to nodes. Metadata is the SHA-256 of each chunk, Hash the SHA-256 of Metadata. What
// vouches for it all is the root, which must be the app hash that the light client has verified.
const (
	snapshotFormat = 1
	chunkSize      = 1 << 20
	maxChunks      = 4096
	maxKey         = 1 << 10
	maxValue       = 1 << 20
	keepSnapshots  = 2
)

// snapshots are the ones in dir, one folder each.
type snapshots struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex
	busy    int64 // height that is being written
	writing sync.WaitGroup
}

// floor is the newest version that may be deleted when all up to want should be.
func (s *snapshots) floor(want int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy > 0 {
		return min(want, s.busy-1)
	}
	return want
}

func (s *snapshots) wait() { s.writing.Wait() }

// make writes a snapshot of a version in the background, one at a time.
func (s *snapshots) make(t *iavl.MutableTree, height int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy != 0 {
		return
	}
	it, err := t.GetImmutable(height)
	if err != nil {
		s.log.Warn("could not begin a snapshot", "height", height, "err", err)
		return
	}
	s.busy = height
	s.writing.Go(func() {
		if err := s.write(it, height); err != nil {
			s.log.Warn("could not write a snapshot", "height", height, "err", err)
		}
		s.mu.Lock()
		s.busy = 0
		s.mu.Unlock()
	})
}

func (s *snapshots) write(t *iavl.ImmutableTree, height int64) error {
	tmp := filepath.Join(s.dir, "new")
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700)); err != nil {
		return err
	}
	ex, err := t.Export()
	if err != nil {
		return err
	}
	defer ex.Close()
	meta := abci.Snapshot{Height: uint64(height), Format: snapshotFormat}
	var buf []byte
	flush := func(n int) error {
		sum := sha256.Sum256(buf[:n])
		meta.Metadata = append(meta.Metadata, sum[:]...)
		err := os.WriteFile(filepath.Join(tmp, strconv.Itoa(int(meta.Chunks))), buf[:n], 0o600)
		buf = append(buf[:0], buf[n:]...)
		if meta.Chunks++; meta.Chunks > maxChunks {
			return errors.New("the state is too large for a snapshot")
		}
		return err
	}
	for {
		n, err := ex.Next()
		if errors.Is(err, iavl.ErrorExportDone) {
			break
		}
		if err != nil {
			return err
		}
		buf = appendNode(buf, n)
		for len(buf) >= chunkSize {
			if err := flush(chunkSize); err != nil {
				return err
			}
		}
	}
	if len(buf) > 0 {
		if err := flush(len(buf)); err != nil {
			return err
		}
	}
	sum := sha256.Sum256(meta.Metadata)
	meta.Hash = sum[:]
	j, err := json.Marshal(&meta)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "meta"), j, 0o600); err != nil {
		return err
	}
	final := filepath.Join(s.dir, strconv.FormatInt(height, 10))
	if err := errors.Join(os.RemoveAll(final), os.Rename(tmp, final)); err != nil {
		return err
	}
	all, err := s.list()
	for i := 0; i < len(all)-keepSnapshots; i++ {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, strconv.FormatUint(all[i].Height, 10))))
	}
	return err
}

// list returns all snapshots, oldest first.
func (s *snapshots) list() (l []*abci.Snapshot, err error) {
	names, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, n := range names {
		if _, err := strconv.ParseInt(n.Name(), 10, 64); err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(s.dir, n.Name(), "meta"))
		if err != nil {
			continue // half removed
		}
		var m abci.Snapshot
		if json.Unmarshal(b, &m) == nil {
			i := 0
			for i < len(l) && l[i].Height < m.Height {
				i++
			}
			l = append(l[:i], append([]*abci.Snapshot{&m}, l[i:]...)...)
		}
	}
	return l, err
}

func appendNode(b []byte, n *iavl.ExportNode) []byte {
	b = append(b, byte(n.Height))
	b = binary.BigEndian.AppendUint64(b, uint64(n.Version))
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(n.Key))), n.Key...)
	if n.Height == 0 {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(n.Value))), n.Value...)
	}
	return b
}

// takeNode reads a node from the beginning of b. When b ends within it, n is nil.
func takeNode(b []byte) (n *iavl.ExportNode, rest []byte, err error) {
	if len(b) < 13 {
		return nil, b, nil
	}
	x := &iavl.ExportNode{Height: int8(b[0]), Version: int64(binary.BigEndian.Uint64(b[1:]))}
	if x.Height < 0 || x.Version < 1 {
		return nil, b, errors.New("a node with a height or version that cannot be")
	}
	k := int(binary.BigEndian.Uint32(b[9:]))
	if k > maxKey || k == 0 {
		return nil, b, fmt.Errorf("a key of %d bytes", k)
	}
	r := b[13:]
	if len(r) < k {
		return nil, b, nil
	}
	x.Key, r = bytes.Clone(r[:k]), r[k:]
	if x.Height == 0 {
		if len(r) < 4 {
			return nil, b, nil
		}
		v := int(binary.BigEndian.Uint32(r))
		if v > maxValue {
			return nil, b, fmt.Errorf("a value of %d bytes", v)
		}
		if len(r[4:]) < v {
			return nil, b, nil
		}
		x.Value, r = append([]byte{}, r[4:4+v]...), r[4+v:]
	}
	return x, r, nil
}

// ListSnapshots implements abci.Application. A newcomer needs the two headers after a snapshot, so the newest must be that old.
func (a *App) ListSnapshots(context.Context, *abci.RequestListSnapshots) (*abci.ResponseListSnapshots, error) {
	a.mu.Lock()
	height := a.tree.Version()
	a.mu.Unlock()
	l, err := a.snaps.list()
	if err != nil {
		return nil, err
	}
	for len(l) > 0 && int64(l[len(l)-1].Height)+2 > height {
		l = l[:len(l)-1]
	}
	return &abci.ResponseListSnapshots{Snapshots: l}, nil
}

// LoadSnapshotChunk implements abci.Application.
func (a *App) LoadSnapshotChunk(_ context.Context, r *abci.RequestLoadSnapshotChunk) (*abci.ResponseLoadSnapshotChunk, error) {
	if r.Format != snapshotFormat {
		return &abci.ResponseLoadSnapshotChunk{}, nil
	}
	b, err := os.ReadFile(filepath.Join(a.snaps.dir, strconv.FormatUint(r.Height, 10), strconv.FormatUint(uint64(r.Chunk), 10)))
	if errors.Is(err, os.ErrNotExist) {
		return &abci.ResponseLoadSnapshotChunk{}, nil
	}
	return &abci.ResponseLoadSnapshotChunk{Chunk: b}, err
}

// restore is a snapshot that is coming in.
type restore struct {
	meta *abci.Snapshot
	root []byte
	in   *iavl.Importer
	next uint32
	left []byte // the beginning of a node
}

func (r *restore) close() { r.in.Close() }

// OfferSnapshot implements abci.Application.
func (a *App) OfferSnapshot(_ context.Context, r *abci.RequestOfferSnapshot) (*abci.ResponseOfferSnapshot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := r.Snapshot
	switch {
	case s == nil:
		return &abci.ResponseOfferSnapshot{Result: abci.ResponseOfferSnapshot_REJECT}, nil
	case s.Format != snapshotFormat:
		return &abci.ResponseOfferSnapshot{Result: abci.ResponseOfferSnapshot_REJECT_FORMAT}, nil
	}
	sum := sha256.Sum256(s.Metadata)
	if s.Chunks == 0 || s.Chunks > maxChunks || len(s.Metadata) != int(s.Chunks)*sha256.Size || !bytes.Equal(sum[:], s.Hash) || s.Height > 1<<62 {
		return &abci.ResponseOfferSnapshot{Result: abci.ResponseOfferSnapshot_REJECT_SENDER}, nil
	}
	if err := a.wipe(); err != nil {
		return nil, err
	}
	in, err := a.tree.Import(int64(s.Height))
	if err != nil {
		return nil, err
	}
	a.restore = &restore{meta: s, root: r.AppHash, in: in}
	return &abci.ResponseOfferSnapshot{Result: abci.ResponseOfferSnapshot_ACCEPT}, nil
}

// wipe empties the tree, in which a snapshot that was given up may have left nodes.
func (a *App) wipe() error {
	if a.restore != nil {
		a.restore.close()
		a.restore = nil
	}
	it, err := a.db.Iterator(nil, nil)
	if err != nil {
		return err
	}
	var keys [][]byte
	for ; it.Valid(); it.Next() {
		keys = append(keys, bytes.Clone(it.Key()))
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return err
	}
	for _, k := range keys {
		if err := a.db.Delete(k); err != nil {
			return err
		}
	}
	return a.load()
}

// ApplySnapshotChunk implements abci.Application. Comet hands over chunks in their order.
func (a *App) ApplySnapshotChunk(_ context.Context, r *abci.RequestApplySnapshotChunk) (*abci.ResponseApplySnapshotChunk, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.restore
	if s == nil || r.Index != s.next {
		return &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_ABORT}, nil
	}
	sum := sha256.Sum256(r.Chunk)
	if len(r.Chunk) > chunkSize || !bytes.Equal(sum[:], s.meta.Metadata[int(r.Index)*sha256.Size:][:sha256.Size]) {
		a.log.Warn("a peer sent a damaged piece of a snapshot", "peer", r.Sender, "piece", r.Index)
		return &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_RETRY, RefetchChunks: []uint32{r.Index}, RejectSenders: []string{r.Sender}}, nil
	}
	s.next++
	err := s.add(r.Chunk)
	if err == nil && s.next == s.meta.Chunks {
		err = a.adopt()
	}
	if err != nil {
		a.log.Warn("a snapshot is not what it should be", "height", s.meta.Height, "err", err)
		if err := a.wipe(); err != nil {
			return nil, err
		}
		return &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_REJECT_SNAPSHOT}, nil
	}
	return &abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_ACCEPT}, nil
}

func (r *restore) add(chunk []byte) (err error) {
	defer func() { // the importer panics on some sequences of nodes that no tree exports
		if p := recover(); p != nil {
			err = fmt.Errorf("it is no tree: %v", p)
		}
	}()
	r.left = append(r.left, chunk...)
	for {
		n, rest, err := takeNode(r.left)
		if err != nil {
			return err
		}
		if n == nil {
			r.left = append([]byte(nil), rest...)
			if len(r.left) > maxKey+maxValue+17 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		r.left = rest
		if n.Version > int64(r.meta.Height) {
			return errors.New("a node is newer than the snapshot")
		}
		if err := r.in.Add(n); err != nil {
			return err
		}
	}
}

// adopt makes what came in the state, if its root is the one that the light client verified.
func (a *App) adopt() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it is no tree: %v", p)
		}
	}()
	r := a.restore
	if len(r.left) != 0 {
		return io.ErrUnexpectedEOF
	}
	if err := r.in.Commit(); err != nil {
		return err
	}
	if err := a.load(); err != nil {
		return err
	}
	if !bytes.Equal(a.tree.Hash(), r.root) {
		return errors.New("its root is not the app hash of the chain")
	}
	m, err := ledger.New(newWorking(a.tree))
	if err != nil {
		return err
	}
	if err := m.Check(); err != nil {
		return err
	}
	r.close()
	a.restore = nil
	return nil
}
