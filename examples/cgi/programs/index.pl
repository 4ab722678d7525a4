#!/usr/bin/perl
# The front page, and all that a CGI in Perl needs: no module that isn't in perl-base.
use strict;
use warnings;

my $name = $ENV{SCRIPT_NAME} =~ s{/index\.pl\z}{}r;
my $body = <<"END";
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>CGI programs</title>
<style>body{font:1.05rem/1.6 system-ui,sans-serif;max-width:42rem;margin:0 auto;padding:2rem 1rem}</style></head>
<body><h1>CGI programs</h1>
<p>This tenant is of the kind <strong>cgi</strong>: a program is started for each request, by the tenant's exec service, and
ends with it. This one is written in Perl.</p>
<ul>
<li><a href="$name/form.pl">A form</a> (Perl)</li>
<li><a href="$name/upload.py">An upload</a> (Python)</li>
<li><a href="$name/stream.pl">A streamed answer</a>: 10 lines, one every 0.3 s</li>
<li><a href="$name/environment.pl/some/path?a=b">What a program is told</a></li>
<li><a href="$name/away.pl?local">A local redirect</a> (the server answers with another page) and
<a href="$name/away.pl">one to the client</a></li>
</ul></body></html>
END
print "Content-Type: text/html; charset=utf-8\n", "Content-Length: ", length($body), "\n\n", $body;
