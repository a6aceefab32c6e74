//! How many to wait for before something is done for all at once: writers and readers who were served together come
//! back together, and each entry or round costs every member the same, however many share it.

/// From how many served at once on the next ones are waited for.
const CROWD: usize = 4;

/// How many are waited for. Whoever uses it sees to it that the wait ends: see [`Self::hurry`].
#[derive(Debug)]
pub(crate) struct Crowd {
    /// How many the last ones had at most; slowly fewer if fewer come.
    usual: usize,
    wanted: usize,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            usual: 0,
            wanted: 1,
        }
    }
}

impl Crowd {
    /// So many are served at once.
    pub fn came(&mut self, count: usize) {
        self.usual = count.max(self.usual - self.usual.div_ceil(16));
        self.wanted = 1;
    }

    /// So many who were served together may come back now.
    pub fn served(&mut self, count: usize) {
        if count >= CROWD {
            self.wanted = self.usual;
        }
    }

    /// Nobody is waited for any longer.
    pub fn hurry(&mut self) {
        self.wanted = 1;
    }

    /// How many must be there.
    pub fn wanted(&self) -> usize {
        self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(crowd: &mut Crowd, count: usize) -> usize {
        crowd.came(count);
        crowd.served(count);
        crowd.wanted()
    }

    #[test]
    fn as_many_as_came_last_are_waited_for() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.wanted(), 1);
        assert_eq!(round(&mut crowd, 64), 64);
        assert_eq!(round(&mut crowd, 60), 60);
        assert_eq!(round(&mut crowd, 64), 64);
        crowd.hurry();
        assert_eq!(crowd.wanted(), 1);
    }

    #[test]
    fn a_crowd_that_shrinks_is_waited_for_less_and_less() {
        let mut crowd = Crowd::default();
        let waits: Vec<_> = std::iter::once(64)
            .chain(std::iter::repeat_n(5, 100))
            .map(|count| round(&mut crowd, count))
            .collect();
        assert_eq!(waits[..3], [64, 60, 56]);
        assert_eq!(waits.last(), Some(&5));
    }

    #[test]
    fn nobody_waits_for_a_few() {
        let mut crowd = Crowd::default();
        round(&mut crowd, 64);
        assert_eq!(round(&mut crowd, 3), 1);
    }
}
