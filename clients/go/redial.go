// Dialling again: at once, then after pauses that grow, for as long as the link shall be made again.

package exchange

import (
	"context"
	"fmt"
	"time"
)

// comeBack: the connection is gone. Dial again, or wait for the peer to do so.
func (l *link) comeBack(reason string, pause time.Duration) {
	l.arm()
	l.backoff.broke(time.Now())
	if l.dial == nil || l.redialling != nil || l.leaving {
		return
	}
	if l.since.IsZero() {
		l.since = time.Now()
	}
	ctx, cancel := context.WithCancel(l.x.base)
	l.redialling = cancel
	go l.redial(ctx, reason, pause)
}

func (l *link) stopRedialling() {
	if l.redialling != nil {
		l.redialling()
		l.redialling = nil
	}
}

func (l *link) redial(ctx context.Context, reason string, pause time.Duration) {
	x := l.x
	for ctx.Err() == nil {
		x.mu.Lock()
		pause = max(pause, l.backoff.next())
		if ctx.Err() == nil && l.retry.over(time.Since(l.since)+pause) {
			l.redialling = nil
			l.session.goodbye(farewell{})
			x.gaveUp(l, fmt.Sprintf("%s, and it was not back within %v", reason, time.Duration(l.retry)))
			l.finish()
			x.mu.Unlock()
			return
		}
		x.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = 0
		attempt, cancel := context.WithTimeout(ctx, dialTime)
		t, err := l.dial(attempt)
		if err == nil && l.connected(ctx, t) {
			cancel()
			return
		}
		cancel()
	}
}

// connected: one attempt has reached somebody.
func (l *link) connected(ctx context.Context, t transport) bool {
	x := l.x
	x.mu.Lock()
	defer x.mu.Unlock()
	if ctx.Err() != nil {
		t.abort()
		return false
	}
	l.stopRedialling() // from here on, a break begins a new one
	l.session.dial(x.introduction(), time.Now())
	l.start(l.attach(t))
	return true
}
