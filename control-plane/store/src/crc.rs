//! Checksums of 32 bits, a byte at a time.

/// As of IEEE 802.3: of snapshots in files.
pub(crate) type Crc32 = Crc<0xedb8_8320>;
/// Castagnoli's: of RocksDB's files.
pub(crate) type Crc32c = Crc<0x82f6_3b78>;

/// A checksum with a polynomial, bits reversed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crc<const POLYNOMIAL: u32>(u32);

impl<const POLYNOMIAL: u32> Default for Crc<POLYNOMIAL> {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl<const POLYNOMIAL: u32> Crc<POLYNOMIAL> {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let (mut crc, mut bit) = (n as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    POLYNOMIAL ^ (crc >> 1)
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[n] = crc;
            n += 1;
        }
        table
    };

    pub fn of(bytes: &[u8]) -> u32 {
        let mut crc = Self::default();
        crc.add(bytes);
        crc.value()
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let index = (self.0 ^ u32::from(*byte)) & 0xff;
            self.0 = Self::TABLE[index as usize] ^ (self.0 >> 8);
        }
    }

    pub fn value(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_that_others_compute() {
        assert_eq!(Crc32::of(b"123456789"), 0xcbf4_3926);
        assert_eq!(Crc32c::of(b"123456789"), 0xe306_9283);
    }
}
