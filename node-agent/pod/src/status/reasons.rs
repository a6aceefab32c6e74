//! Reasons of waiting and ended containers, as users know them.

/// Being made.
pub const CONTAINER_CREATING: &str = "ContainerCreating";
/// Init containers come first.
pub const POD_INITIALIZING: &str = "PodInitializing";
/// The image could not be pulled.
pub const ERR_IMAGE_PULL: &str = "ErrImagePull";
/// The image could not be pulled and is tried again later.
pub const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";
/// The image is not there and must not be pulled.
pub const ERR_IMAGE_NEVER_PULL: &str = "ErrImageNeverPull";
/// The image's name can't be parsed.
pub const INVALID_IMAGE_NAME: &str = "InvalidImageName";
/// It ended too often.
pub const CRASH_LOOP_BACK_OFF: &str = "CrashLoopBackOff";
/// Something that its configuration refers to is not there.
pub const CREATE_CONTAINER_CONFIG_ERROR: &str = "CreateContainerConfigError";
/// The runtime could not make it.
pub const CREATE_CONTAINER_ERROR: &str = "CreateContainerError";
/// The runtime could not start it.
pub const RUN_CONTAINER_ERROR: &str = "RunContainerError";
/// Its postStart hook failed.
pub const POST_START_HOOK_ERROR: &str = "PostStartHookError";
/// It ended, nobody saw how.
pub const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
