"""The fixed parts of a zip file, for its reader and for its writer; all little-endian, signature first.

Source: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.14-16.
"""

from __future__ import annotations

import struct

LOCAL = struct.Struct("<4s5H3I2H")  # the header before the bytes of a record
CENTRAL = struct.Struct("<4s6H3I5H2I")  # its entry in the central directory
END = struct.Struct("<4s4H2IH")  # the end of the central directory
END64 = struct.Struct("<4sQ2H2I4Q")  # the same with wide numbers (zip64)
LOCATOR64 = struct.Struct("<4sIQI")  # where that lies
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF  # in a narrow field: the number is in a wide one
