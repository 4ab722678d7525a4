"""Content types by the end of a file's name.

A table of our own, not the machine's nor Python's, so that the same file has the same type everywhere. In it is what
browsers load, what people put up for download, and what other servers know; where the registry has changed its mind
(text/javascript), the registry is right.
"""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT = "application/octet-stream"

#: A media type and its suffixes in each line.
_TABLE = """
text/html                               html htm shtml
text/css                                css
text/javascript                         js mjs
text/plain                              txt text log conf ini diff patch
text/markdown                           md markdown
text/csv                                csv
text/tab-separated-values               tsv
text/calendar                           ics
text/vcard                              vcf
text/vtt                                vtt
text/xml                                xml xsl xsd
text/mathml                             mml
text/x-component                        htc
text/vnd.sun.j2me.app-descriptor        jad
text/vnd.wap.wml                        wml
text/x-python                           py
text/x-c                                c h
text/x-java-source                      java
text/yaml                               yaml yml
application/xhtml+xml                   xhtml xht
application/atom+xml                    atom
application/rss+xml                     rss
application/rdf+xml                     rdf owl
application/xslt+xml                    xslt
application/gpx+xml                     gpx
application/vnd.google-earth.kml+xml    kml
application/vnd.google-earth.kmz        kmz
application/json                        json map
application/ld+json                     jsonld
application/geo+json                    geojson topojson
application/feed+json                   jsonfeed
application/manifest+json               webmanifest
application/wasm                        wasm
application/toml                        toml
application/sql                         sql
image/gif                               gif
image/jpeg                              jpg jpeg jpe jfif
image/png                               png
image/apng                              apng
image/webp                              webp
image/avif                              avif
image/jxl                               jxl
image/heic                              heic
image/heif                              heif
image/svg+xml                           svg
image/svg+xml-compressed                svgz
image/tiff                              tif tiff
image/bmp                               bmp
image/x-icon                            ico cur
image/x-jng                             jng
image/vnd.wap.wbmp                      wbmp
image/vnd.adobe.photoshop               psd
font/woff                               woff
font/woff2                              woff2
font/ttf                                ttf
font/otf                                otf
font/collection                         ttc
application/vnd.ms-fontobject           eot
audio/mpeg                              mp3
audio/mp4                               m4a
audio/aac                               aac
audio/ogg                               oga ogg opus spx
audio/flac                              flac
audio/wav                               wav
audio/midi                              mid midi kar
audio/x-realaudio                       ra
audio/mpegurl                           m3u
audio/aiff                              aif aiff
audio/webm                              weba
video/mp4                               mp4 m4v
video/mpeg                              mpeg mpg
video/ogg                               ogv
video/webm                              webm
video/quicktime                         mov qt
video/3gpp                              3gp 3gpp
video/mp2t                              ts m2ts
video/x-flv                             flv
video/x-matroska                        mkv
video/x-mng                             mng
video/x-ms-asf                          asx asf
video/x-ms-wmv                          wmv
video/x-msvideo                         avi
application/ogg                         ogx
application/vnd.apple.mpegurl           m3u8
application/dash+xml                    mpd
model/gltf+json                         gltf
model/gltf-binary                       glb
model/stl                               stl
model/obj                               obj
application/pdf                         pdf
application/postscript                  ps eps ai
application/rtf                         rtf
application/epub+zip                    epub
application/x-mobipocket-ebook          mobi prc
application/msword                      doc dot
application/vnd.ms-excel                xls
application/vnd.ms-powerpoint           ppt
application/vnd.openxmlformats-officedocument.wordprocessingml.document     docx
application/vnd.openxmlformats-officedocument.spreadsheetml.sheet           xlsx
application/vnd.openxmlformats-officedocument.presentationml.presentation   pptx
application/vnd.oasis.opendocument.text                                     odt
application/vnd.oasis.opendocument.spreadsheet                              ods
application/vnd.oasis.opendocument.presentation                             odp
application/vnd.oasis.opendocument.graphics                                 odg
application/vnd.wap.wmlc                wmlc
application/zip                         zip
application/gzip                        gz tgz
application/x-bzip2                     bz2 tbz2
application/x-xz                        xz txz
application/zstd                        zst
application/x-brotli                    br
application/x-7z-compressed             7z
application/vnd.rar                     rar
application/x-tar                       tar
application/java-archive                jar war ear
application/mac-binhex40                hqx
application/x-cocoa                     cco
application/x-java-archive-diff         jardiff
application/x-java-jnlp-file            jnlp
application/x-makeself                  run
application/x-perl                      pl pm
application/x-pilot                     pdb
application/x-redhat-package-manager    rpm
application/x-sea                       sea
application/x-shockwave-flash           swf
application/x-stuffit                   sit
application/x-tcl                       tcl tk
application/x-x509-ca-cert              der pem crt
application/x-xpinstall                 xpi
application/x-bittorrent                torrent
application/vnd.debian.binary-package   deb
application/vnd.android.package-archive apk
application/x-sh                        sh
application/pgp-signature               sig asc
application/pgp-keys                    key
application/x-ndjson                    ndjson
application/vnd.sqlite3                 sqlite sqlite3
application/x-apple-diskimage           dmg
application/x-iso9660-image             iso
"""

TYPES: dict[str, str] = {
    f".{suffix}": line[0]
    for line in [line.split() for line in _TABLE.strip().splitlines()]
    for suffix in line[1:]
}

#: Types that are text without saying so in their first half.
_TEXT = frozenset({"application/json", "application/manifest+json", "application/geo+json", "image/svg+xml"})
_TEXT_ENDS = ("+xml", "/toml", "/sql", "/x-sh")


class ContentTypes:
    """Content types with their character set, for one tenant. Any thread may ask."""

    def __init__(self, types: Mapping[str, str], charset: str) -> None:
        """`types`: more of them, by suffix in lower case; `charset`: for texts, "": none is named."""
        self._charset = charset
        self._types = {suffix: self._with_charset(kind) for suffix, kind in {**TYPES, **types}.items()}

    def _with_charset(self, kind: str) -> str:
        if not self._charset or "charset=" in kind:
            return kind
        base = kind.partition(";")[0]
        text = base.startswith("text/") or base in _TEXT or base.endswith(_TEXT_ENDS)
        return f"{kind}; charset={self._charset}" if text else kind

    def of(self, name: bytes) -> str:
        """Return the Content-Type of a file by its name, or path.

        A packed file is served as the package, not as what is in it.
        """
        dot = name.rfind(b".") + 1
        if not dot or b"/" in name[dot:]:
            return DEFAULT
        return self._types.get(f".{name[dot:].decode('latin-1').lower()}", DEFAULT)
