//! How many to wait for before something is done for all at once: writers and readers who were served together come
//! back together, and each entry or round costs every member the same, however many share it.

/// From how many at once on they are a crowd, and the next ones are waited for.
const CROWD: f64 = 2.0;
/// What is left of the usual number when fewer come. Crowds are remembered for long: on a busy machine some of them come
/// alone, and would be served alone, each round a little smaller than the last.
const REMEMBERED: f64 = 31.0 / 32.0;
/// What is left of it when they were waited for in vain.
const DOUBTED: f64 = 3.0 / 4.0;

/// How many are waited for. Whoever uses it sees to it that the wait ends: see [`Self::hurry`].
#[derive(Debug)]
pub(crate) struct Crowd {
    /// How many the last ones had at most; slowly fewer if fewer come.
    usual: f64,
    wanted: usize,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            usual: 0.0,
            wanted: 1,
        }
    }
}

impl Crowd {
    /// So many are served at once.
    pub fn came(&mut self, count: usize) {
        self.usual = (count as f64).max(self.usual * REMEMBERED);
        self.wanted = 1;
    }

    /// Some were served, who may come back now.
    pub fn served(&mut self) {
        if self.usual >= CROWD {
            self.wanted = self.usual as usize;
        }
    }

    /// They did not all come in time: nobody is waited for any longer.
    pub fn hurry(&mut self) {
        self.usual *= DOUBTED;
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
        crowd.served();
        crowd.wanted()
    }

    #[test]
    fn as_many_as_came_last_are_waited_for() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.wanted(), 1);
        assert_eq!(round(&mut crowd, 64), 64);
        assert_eq!(round(&mut crowd, 60), 62);
        assert_eq!(round(&mut crowd, 64), 64);
        crowd.hurry();
        assert_eq!(crowd.wanted(), 1);
    }

    #[test]
    fn a_crowd_that_shrinks_is_waited_for_less_and_less() {
        let mut crowd = Crowd::default();
        let waits: Vec<_> = std::iter::once(64)
            .chain(std::iter::repeat_n(5, 200))
            .map(|count| round(&mut crowd, count))
            .collect();
        assert_eq!(waits[..4], [64, 62, 60, 58]);
        assert_eq!(waits.last(), Some(&5));
    }

    #[test]
    fn one_who_is_left_of_a_crowd_waits_in_vain_a_few_times() {
        let mut crowd = Crowd::default();
        round(&mut crowd, 64);
        let mut in_vain = 0;
        while crowd.wanted() > 1 {
            crowd.hurry();
            in_vain += 1;
            round(&mut crowd, 1);
        }
        assert!(in_vain <= 11, "{in_vain} times");
    }

    #[test]
    fn one_of_a_crowd_who_comes_alone_waits_for_the_others_and_one_without_a_crowd_does_not() {
        let mut crowd = Crowd::default();
        round(&mut crowd, 9);
        assert_eq!(round(&mut crowd, 1), 8);
        let mut crowd = Crowd::default();
        assert_eq!(round(&mut crowd, 2), 2);
        assert_eq!(round(&mut crowd, 1), 1, "two who met by chance");
    }
}
