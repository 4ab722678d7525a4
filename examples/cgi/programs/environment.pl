#!/usr/bin/perl
# What a program is told: its variables, its words, its folder, and who it is.
use strict;
use warnings;

print "Content-Type: text/plain; charset=utf-8\n\n";
print map { "$_: $ENV{$_}\n" } sort keys %ENV;
print "words: @ARGV\nuid: $>\n";
