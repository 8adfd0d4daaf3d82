//! When to dial again: at once, then after a random part of a time that doubles up to a bound.
//!
//! A link that breaks right after it was made does not count as made.

use crate::limits::Limits;
use crate::message::Time;

#[derive(Debug)]
pub(crate) struct Backoff {
    least: Time,
    most: Time,
    attempts: u32,
    made: Time,
}

impl Backoff {
    pub fn new(limits: &Limits) -> Self {
        let (least, most) = (limits.reconnect_min.as_secs_f64(), limits.reconnect_max.as_secs_f64());
        Self { least, most, attempts: 0, made: f64::INFINITY }
    }

    /// The link is there.
    pub fn made(&mut self, now: Time) {
        self.made = now;
    }

    /// ... and gone.
    pub fn broke(&mut self, now: Time) {
        if now - self.made >= self.least {
            self.attempts = 0;
        }
        self.made = f64::INFINITY; // an attempt that comes to nothing was never made
    }

    /// The seconds until the next attempt; `draw` is from 0 to 1.
    pub fn next(&mut self, draw: f64) -> Time {
        self.attempts = self.attempts.saturating_add(1);
        match self.attempts {
            1 => 0.0,
            n => draw * (self.least * 2_f64.powi(n.min(64).cast_signed() - 2)).min(self.most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut backoff = Backoff::new(&Limits::default());
        let pauses: Vec<f64> = (0..7).map(|_| backoff.next(1.0)).collect();
        assert_eq!(pauses, [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]);
        backoff.made(10.0);
        backoff.broke(10.05); // right after it was made
        assert_eq!(backoff.next(0.5), 0.5);
        backoff.made(20.0);
        backoff.broke(21.0);
        assert_eq!(backoff.next(1.0), 0.0);
    }
}
