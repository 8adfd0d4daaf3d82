// When to dial again: at once, then after a random part of a time that doubles up to a bound, so that many do not
// come together. A link that breaks right after it was made does not count as made.

package exchange

import "time"

type backoff struct {
	limits   Limits
	draw     func() float64 // from 0 to 1
	attempts int
	madeAt   time.Time // zero: not made
}

// made: the link is there.
func (b *backoff) made(now time.Time) { b.madeAt = now }

// broke: ... and gone.
func (b *backoff) broke(now time.Time) {
	if !b.madeAt.IsZero() && now.Sub(b.madeAt) >= b.limits.ReconnectMin {
		b.attempts = 0
	}
	b.madeAt = time.Time{}
}

// next is how long to wait before the next attempt.
func (b *backoff) next() time.Duration {
	b.attempts++
	if b.attempts == 1 {
		return 0
	}
	most := b.limits.ReconnectMin << min(b.attempts-2, 16)
	return time.Duration(b.draw() * float64(min(most, b.limits.ReconnectMax)))
}
