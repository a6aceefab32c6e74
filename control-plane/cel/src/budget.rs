//! The limit on what evaluations may cost.
//!
//! The unit is cel-go's: one for a step or a call, a tenth for a character that is looked at. It is deterministic
//! and independent of the machine.

use crate::error::EvalError;

/// Cost that may still be used. One budget can be shared by several evaluations.
#[derive(Debug, Clone)]
pub struct Budget {
    left: u64,
}

impl Budget {
    /// Cost of all rules of one object, or all expressions of one policy (upstream `RuntimeCELCostBudget`).
    pub const PER_OBJECT: u64 = 10_000_000;
    /// Cost of one evaluation (upstream `PerCallLimit`).
    pub const PER_CALL: u64 = 1_000_000;
    /// Cost of a webhook's match conditions (upstream `RuntimeCELCostBudgetMatchConditions`).
    pub const MATCH_CONDITIONS: u64 = 2_500_000;

    /// A budget.
    #[must_use]
    pub fn new(cost: u64) -> Self {
        Self { left: cost }
    }

    /// What is left.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// Uses some.
    ///
    /// # Errors
    /// [`EvalError::CostExceeded`] when there is not enough left; then nothing is.
    pub fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::CostExceeded)
            }
        }
    }

    /// Uses what looking through a text of `length` bytes costs.
    ///
    /// # Errors
    /// As [`Self::charge`].
    pub fn charge_text(&mut self, length: usize) -> Result<(), EvalError> {
        self.charge((length as u64).div_ceil(10))
    }
}
