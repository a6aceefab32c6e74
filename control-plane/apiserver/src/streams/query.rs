//! Query parameters of streaming subresources.

use balsa_api::status::{FieldErrors, Status};
use balsa_link::protocol::{LogOptions, StreamIo};

/// Parameters in their order, decoded.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &http::Uri) -> Self {
        let text = uri.query().unwrap_or_default().as_bytes();
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    pub(super) fn first(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, v)| v)
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
            .collect()
    }

    /// As upstream converts query parameters: absent, `false` and `0` are false, all else true.
    pub(super) fn flag(&self, name: &str) -> bool {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.is_some_and(|(_, v)| !v.eq_ignore_ascii_case("false") && v != "0")
    }

    fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.first(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }

    /// Which streams exec and attach ask for.
    ///
    /// # Errors
    /// 400 when it is none.
    pub(super) fn stream_io(&self) -> Result<StreamIo, Status> {
        let tty = self.flag("tty");
        let io = StreamIo {
            stdin: self.flag("stdin"),
            stdout: self.flag("stdout"),
            // A terminal has one output.
            stderr: self.flag("stderr") && !tty,
            tty,
        };
        if !(io.stdin || io.stdout || io.stderr) {
            return Err(Status::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            ));
        }
        Ok(io)
    }

    /// `PodLogOptions`.
    ///
    /// # Errors
    /// 400 for what is no number, 422 for numbers that make no sense.
    pub(super) fn log_options(&self, pod: &str) -> Result<LogOptions, Status> {
        let mut errors = FieldErrors::default();
        let mut checked = |name: &'static str, least: i64, why: &'static str| {
            let value = self.number(name)?;
            if let Some(bad) = value.filter(|v| *v < least) {
                errors.invalid(name, bad, why);
            }
            Ok::<_, Status>(value.and_then(|v| u64::try_from(v).ok()))
        };
        let tail_lines = checked("tailLines", 0, "must be greater than or equal to 0")?;
        let limit_bytes = checked("limitBytes", 1, "must be greater than 0")?;
        let since_seconds = checked("sinceSeconds", 1, "must be greater than 0")?;
        let text = |name: &str| Some(self.first(name).to_owned()).filter(|v| !v.is_empty());
        let (since_time, stream) = (text("sinceTime"), text("stream"));
        if let Some(time) = &since_time
            && time.parse::<jiff::Timestamp>().is_err()
        {
            errors.invalid(
                "sinceTime",
                time.as_str(),
                "must be a time in RFC 3339 format",
            );
        }
        if since_time.is_some() && since_seconds.is_some() {
            errors.forbidden(
                "",
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            );
        }
        const STREAMS: [&str; 3] = ["All", "Stdout", "Stderr"];
        if let Some(name) = stream.as_deref().filter(|s| !STREAMS.contains(s)) {
            errors.not_supported("stream", name, &STREAMS);
        }
        if tail_lines.is_some() && stream.as_deref().is_some_and(|s| s != "All") {
            errors.forbidden(
                "",
                "`tailLines` and specific `stream` are mutually exclusive for now",
            );
        }
        if !errors.is_empty() {
            return Err(Status::invalid("PodLogOptions", "", pod, &errors));
        }
        Ok(LogOptions {
            follow: self.flag("follow"),
            previous: self.flag("previous"),
            timestamps: self.flag("timestamps"),
            tail_lines,
            since_seconds,
            since_time,
            limit_bytes,
            stream,
        })
    }
}
