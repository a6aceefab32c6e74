//! The pod lifecycle as a pure reducer: (spec, observed) to actions and status.
