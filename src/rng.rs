//! Counter-based random numbers: Philox 4x32-10.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//! A draw is a pure function of (key, counter), so a sample never depends on its
//! neighbours, on the batch size or on a restart, and no generator state is saved.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// The four 32-bit words of Philox 4x32-10 for one counter under one key.
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    let mut c = counter;
    for round in 0..10 {
        if round > 0 {
            k0 = k0.wrapping_add(W0);
            k1 = k1.wrapping_add(W1);
        }
        let p0 = u64::from(M0) * u64::from(c[0]);
        let p1 = u64::from(M1) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32];
    }
    c
}

/// A uniform number in [0, 1) with 24 random bits, exact in f32.
pub fn unit_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// What a stream of random numbers is for; part of the counter, so no two uses share draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Token sampling: the counter is (position, purpose, place of the prompt in the shuffled stream, completion).
    Sample = 1,
    /// Dataset order.
    Shuffle = 2,
    /// Parameter initialisation.
    Init = 3,
    /// Synthetic task generation.
    Task = 4,
}

/// A sequential view of one stream: successive 32-bit words under a fixed key.
///
/// For places that need "the next number" (shuffles, drawings), not for sampling tokens.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u64,
    purpose: Purpose,
    id: u64,
    next: u32,
    words: [u32; 4],
}

impl Stream {
    /// Stream number `id` of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: Purpose, id: u64) -> Self {
        Stream { key: seed, purpose, id, next: 0, words: [0; 4] }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let lane = (self.next % 4) as usize;
        if lane == 0 {
            let counter = [self.next / 4, self.purpose as u32, self.id as u32, (self.id >> 32) as u32];
            self.words = philox(self.key, counter);
        }
        self.next = self.next.wrapping_add(1);
        self.words[lane]
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        unit_f32(self.next_u32())
    }

    /// Uniform integer in `0..n`, without modulo bias (rejection). `n` must be positive.
    pub fn below(&mut self, n: u32) -> u32 {
        let n = n.max(1);
        let zone = u32::MAX - (u32::MAX % n + 1) % n;
        loop {
            let x = self.next_u32();
            if x <= zone {
                return x % n;
            }
        }
    }

    /// A standard normal number (Box-Muller, computed in f64).
    pub fn normal(&mut self) -> f32 {
        let u = (f64::from(self.next_u32()) + 1.0) / 4_294_967_296.0;
        let v = f64::from(self.next_u32()) / 4_294_967_296.0;
        ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
    }

    /// Fisher-Yates shuffle in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u32 + 1) as usize;
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors of Random123 1.14 (`kat_vectors`, philox4x32 10 rounds).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox(0x299f_31d0_a409_3822, [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut s = Stream::new(7, Purpose::Task, 0);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[s.below(6) as usize] += 1;
        }
        // Binomial standard deviation is 91; five of them.
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 456), "{counts:?}");
    }

    #[test]
    fn normal_has_unit_variance() {
        let mut s = Stream::new(1, Purpose::Init, 3);
        let x: Vec<f64> = (0..40_000).map(|_| f64::from(s.normal())).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.025 && (var - 1.0).abs() < 0.04, "{mean} {var}");
    }
}
