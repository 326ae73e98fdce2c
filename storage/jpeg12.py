"""12-bit lossy JPEG (process 4), which GDCM decodes and pydicom's use of GDCM leaves out."""

import gdcm
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import JPEGExtended12Bit

from storage.errors import ImageError


def decode_jpeg12(stream: bytes, rows: int, columns: int, bits: int) -> NDArray[np.uint16]:
    """One gray frame, `bits` 9 to 12 a sample -> [rows, columns]. Raises ImageError for a damaged stream."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(JPEGExtended12Bit))))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, 0))
    # GDCM hands bytes over as text, with surrogates for what is not UTF-8, and None for what it cannot decode.
    text = image.GetBuffer()
    frame = b"" if text is None else text.encode("utf-8", "surrogateescape")
    if len(frame) != rows * columns * 2:
        raise ImageError("the 12-bit JPEG pixel data is damaged, or ends early")
    return np.frombuffer(frame, "<u2").reshape(rows, columns)
